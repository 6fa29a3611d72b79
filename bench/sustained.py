"""Loads a node for ten minutes with everything on: `python -m bench.sustained [--seconds S]`.

Twice the same load, `meterctl bench --batch 500`, which verifies all totals: for half a minute on a
node whose housekeeping stands still (the retention sweeper is stopped, checkpoints are off),
which is the throughput *without*; then for as long as asked on a node as it comes.  That one is
looked at every ten seconds: events stored, full log files that wait for their segment, segments
that wait to be merged, memory, bytes on disk.

Two settings differ from the defaults because the disk of a small machine would be full otherwise:
files that others replace stay for a minute (default: a day), and at most 16 log files are kept for
their age (default: 100).
"""

import argparse
import signal
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.node import NO_CHECKPOINTS, Node, meterd_node, node_directory
from bench.storage import anonymous_bytes
from bench.support import directory_size, fdatasync_us, say, write_result

SETTINGS = {"METERD__STORAGE__COPY_GRACE": "60s", "METERD__WAL__MAX_SEGMENTS": "16"}
STOPPED = {**NO_CHECKPOINTS, "METERD__WATCHDOG__STALL": "600s"}
WITHOUT_SECONDS, WARM_UP = 30, 3
SAMPLE_SECONDS = 10.0
SWEEPER = "meterd:retention"


def telemetry(http_port: int) -> dict[str, float]:
    """Gauges and counters of all actors, those with labels summed up."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
    return found


def sample(node: Node, began: float) -> dict[str, Any]:
    """Look at a node once."""
    found = telemetry(node.http_port)
    sizes = sorted(path.stat().st_size for path in (node.directory / "data").glob("seg-*.seg"))
    return {
        "seconds": round(time.monotonic() - began, 1),
        "events": int(found["billing_events_ingested_total"]),
        "files_waiting": int(found["billing_segments_waiting"]),
        "segments": len(sizes),
        "segments_to_merge": int(found.get("billing_compaction_pending_files", 0)),
        "anonymous_bytes": anonymous_bytes(node),
        "disk_bytes": directory_size(node.directory / "data"),
    }


def watched(node: Node, seconds: float) -> tuple[dict[str, Any], list[Any]]:
    """Load a node and look at it meanwhile."""
    samples: list[dict[str, Any]] = []
    ended = threading.Event()

    def watch() -> None:
        began = time.monotonic()
        while not ended.wait(SAMPLE_SECONDS):
            samples.append(sample(node, began))
            say(f"{samples[-1]}")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = node.bench(batch=500, warm_up=WARM_UP, seconds=seconds)
    finally:
        ended.set()
        watcher.join()
    return found, samples


def without(parent: Path) -> dict[str, Any]:
    """The same load on a node that does nothing else."""
    with node_directory(parent) as directory, meterd_node(directory, STOPPED) as node:
        (sweeper,) = [one for one in node.pids() if one.name().startswith(SWEEPER[:15])]
        sweeper.send_signal(signal.SIGSTOP)
        try:
            return node.bench(batch=500, warm_up=WARM_UP, seconds=WITHOUT_SECONDS)
        finally:
            sweeper.send_signal(signal.SIGCONT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    options = parser.parse_args()
    document: dict[str, Any] = {"settings": SETTINGS}
    document["fdatasync_us"] = fdatasync_us(options.directory)
    document["without"] = without(options.directory)
    say(f"without: {document['without']['events_per_second']} events/s")
    with (
        node_directory(options.directory) as directory,
        meterd_node(directory, SETTINGS) as node,
    ):
        found, samples = watched(node, options.seconds)
        document["with_everything"], document["samples"] = found, samples
    document["share"] = round(
        found["events_per_second"] / document["without"]["events_per_second"], 3
    )
    print(f"{found['events_per_second']} events/s, {document['share']:.1%} of without")
    print(f"wrote {write_result('sustained', document)}")


if __name__ == "__main__":
    main()
