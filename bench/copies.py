"""python -m bench.copies: copies of a node's directory under full load; does each start, and hold?

A load sends numbered events without rest.  Copies are made one after another, listed first and
copied by name as rsync does, or by `cp -a`; each is started at once beside the node, and asked for
its totals: every event that was acknowledged before the copy began must be held, each once.
"""

import argparse
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.node import Node, meterd_node, node_directory
from bench.support import directory_size, fdatasync_us, say, write_result
from meterd.client import Client
from tests.support.live_copy import rsync_like
from tests.support.steady_load import SteadyLoad, check_prefix, put_metrics

# Files change often while a copy is made.
SETTINGS = {"METERD__WAL__SEGMENT_SIZE": "4MiB", "METERD__STORAGE__CHECKPOINT_EVENTS": "20000"}
# A new node when the directory is so large: each copy takes all of it.
SIZE_MAX = 400 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--parent", type=Path, default=Path("/tmp"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with node_directory(options.parent) as home:
        probe = fdatasync_us(home)
    while len(rows) < options.copies:
        with node_directory(options.parent) as home, meterd_node(home, SETTINGS) as node:
            rows += copies_of(node, home, len(rows), options.copies)
    document = {
        "fdatasync_4k_us": probe,
        "copies": len(rows),
        "good": sum(row["good"] for row in rows),
        "with_unwritten_sectors": sum(row["torn"] for row in rows),
        "without_usable_checkpoint": sum(row["checkpoints_unusable"] == 2 for row in rows),
        "rows": rows,
    }
    say(f"wrote {write_result('copies', document)}: {document['good']} of {len(rows)} good")
    if document["good"] < len(rows):
        raise SystemExit(1)


def copies_of(node: Node, home: Path, first: int, end: int) -> list[dict[str, Any]]:
    """Load one node and copy it until it is large or there are enough; a row for each copy."""
    rows = []
    with Client([node.address], timeout=60) as client:
        put_metrics(client)
    with SteadyLoad(node.address) as load:
        await_events(load, 20_000)
        while first + len(rows) < end and directory_size(home / "data") < SIZE_MAX:
            await_events(load, load.acknowledged + 2_000)
            rows.append(one_copy(home, load, "rsync" if len(rows) % 2 else "cp"))
            say(f"copy {first + len(rows)}: {rows[-1]}")
    return rows


def await_events(load: SteadyLoad, count: int) -> None:
    while load.acknowledged < count:
        time.sleep(0.01)


def one_copy(home: Path, load: SteadyLoad, way: str) -> dict[str, Any]:
    target = home / "copy"
    target.mkdir()
    acknowledged, begin = load.acknowledged, time.monotonic()
    if way == "cp":
        # Files that vanish meanwhile make it end with 1.
        subprocess.run(
            ["cp", "-a", str(home / "data"), str(target)], check=False, stderr=subprocess.DEVNULL
        )
    else:
        rsync_like(home / "data", target / "data")
    row = {"way": way, "seconds": round(time.monotonic() - begin, 3), "acknowledged": acknowledged}
    row["sent_meanwhile"] = load.acknowledged - acknowledged
    try:
        with meterd_node(target) as node, Client([node.address], timeout=120) as client:
            row["held"] = check_prefix(client, acknowledged)
            row["good"] = True
    except (AssertionError, RuntimeError) as failure:
        row["good"], row["failure"] = False, str(failure)[-2000:]
    log = "\n".join(path.read_text() for path in target.glob("*.log"))
    row["torn"] = "the copy caught a log file" in log
    row["checkpoints_unusable"] = log.count("of the copy cannot be used")
    shutil.rmtree(target)
    return row


if __name__ == "__main__":
    main()
