"""Loads a node for ten minutes with everything on: `python -m bench.sustained [--seconds S]`.

`--nodes N --rate EVENTS`: a cluster, with so many events a second; numbers of all nodes together.
Else twice the same load, `meterctl bench --batch 500`, which verifies all totals: for half a
minute on a node whose housekeeping stands still (the retention sweeper is stopped, checkpoints are
off), which is the throughput *without*; then for as long as asked on a node as it comes.  That one
is looked at every ten seconds: events stored, full log files that wait for their segment, segments
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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cluster import await_leaders, cpu_seconds, meterctl_bench, per_event_us
from bench.node import NO_CHECKPOINTS, meterd_node, node_directory, processes_of
from bench.storage import anonymous_bytes
from bench.support import directory_size, fdatasync_us, say, write_result
from tests.support.cluster import Cluster

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


@dataclass(frozen=True)
class Watched:
    """A node that is looked at."""

    http_port: int
    data: Path
    pid: int

    def sample(self) -> dict[str, int]:
        found = telemetry(self.http_port)
        return {
            "events": int(found.get("billing_events_ingested_total", 0)),
            "files_waiting": int(found.get("billing_segments_waiting", 0)),
            "segments": sum(1 for _ in self.data.glob("seg-*.seg")),
            "segments_to_merge": int(found.get("billing_compaction_pending_files", 0)),
            "anonymous_bytes": anonymous_bytes(processes_of(self.pid)),
            "disk_bytes": directory_size(self.data),
        }


def watched(
    nodes: list[Watched], load: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], list[Any]]:
    """Load nodes and look at them meanwhile; numbers of several are added up."""
    samples: list[dict[str, Any]] = []
    ended = threading.Event()

    def watch() -> None:
        began = time.monotonic()
        while not ended.wait(SAMPLE_SECONDS):
            total: Counter[str] = Counter()
            for node in nodes:
                total.update(node.sample())
            samples.append({"seconds": round(time.monotonic() - began, 1), **total})
            say(f"{samples[-1]}")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = load()
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


def of_a_node(directory: Path, seconds: float) -> dict[str, Any]:
    document: dict[str, Any] = {"without": without(directory)}
    say(f"without: {document['without']['events_per_second']} events/s")
    with node_directory(directory) as own, meterd_node(own, SETTINGS) as node:
        looked = [Watched(node.http_port, node.directory / "data", node.process.pid)]
        found, samples = watched(
            looked, lambda: node.bench(batch=500, warm_up=WARM_UP, seconds=seconds)
        )
    share = round(found["events_per_second"] / document["without"]["events_per_second"], 3)
    print(f"{found['events_per_second']} events/s, {share:.1%} of without")
    return document | {"with_everything": found, "samples": samples, "share": share}


def of_a_cluster(count: int, seconds: float, rate: float) -> dict[str, Any]:
    with Cluster(count, environment=SETTINGS, cuts=False) as cluster:
        await_leaders(cluster)
        looked = []
        for node in cluster.nodes:
            assert node.process is not None
            looked.append(Watched(node.http_port, node.data_dir, node.process.pid))
        before = cpu_seconds(cluster)
        found, samples = watched(
            looked,
            lambda: meterctl_bench(
                cluster, batch=500, warm_up=WARM_UP, seconds=seconds, rate=rate
            ),
        )
        spent = cpu_seconds(cluster)
        spent.subtract(before)
    found["cpu_us_per_event"] = per_event_us(spent, found)
    print(f"{found['events_per_second']} events/s, {found['latency_us']}")
    return {"nodes": count, "with_everything": found, "samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="events a second, of a cluster")
    options = parser.parse_args()
    document: dict[str, Any] = {"settings": SETTINGS}
    document["fdatasync_us"] = fdatasync_us(options.directory)
    if options.nodes == 1:
        document |= of_a_node(options.directory, options.seconds)
    else:
        document |= of_a_cluster(options.nodes, options.seconds, options.rate)
    print(f"wrote {write_result('sustained', document)}")


if __name__ == "__main__":
    main()
