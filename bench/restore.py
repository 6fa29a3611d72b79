"""python -m bench.restore: how long a backup, its restore and the start of the restored node take.

A node is loaded with events, backed up without an I/O limit, and lost; RTO is the time from then
to a node that serves, with every total equal.  The restore is measured once verified by checksum
and once by replay.
"""

import argparse
import resource
import shutil
import time
from pathlib import Path
from typing import Any

from bench.node import Node, meterd_node, node_directory
from bench.support import fdatasync_us, say, write_result

LIMIT_SECONDS = 30.0
SETTINGS = {"METERD__BACKUP__IO_LIMIT": "1TiB"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--parent", type=Path, default=Path("/tmp"))
    options = parser.parse_args()
    with node_directory(options.parent) as home:
        probe = fdatasync_us(home)
        made, expected = load(home, options)
        runs = {level: restore(home, level, expected) for level in ("checksum", "replay")}
    good = all(run["ready_seconds"] < LIMIT_SECONDS for run in runs.values())
    document = {
        "events": expected,
        "accounts": options.accounts,
        "fdatasync_4k_us": probe,
        "backup": made,
        "restore": runs,
        "limit_seconds": LIMIT_SECONDS,
        "within_limit": good,
    }
    say(f"wrote {write_result('restore', document)}")


def load(home: Path, options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Store so many events at least, make a backup, stop; the backup and how many there are."""
    with meterd_node(home, SETTINGS) as node:
        while events(node) < options.events:
            node.bench(seconds=1, warm_up=0, accounts=options.accounts, batch=1000)
            say(f"{events(node):,} events")
        made = node.meterctl("backup", "create", "--to", str(home / "backups"))
        return made, events(node)


def events(node: Node) -> int:
    found = node.meterctl("status")["nodes"][0]["totals"]["events"]
    return int(found)


def restore(home: Path, level: str, expected: int) -> dict[str, float]:
    """Lose the directory, restore it, start; what took how long."""
    shutil.rmtree(home / "data")
    begin, spent = time.monotonic(), children_seconds()
    client = Node(None, "127.0.0.1:1", 0, home, 0.0)  # type: ignore[arg-type]
    where = ("--from", str(home / "backups"), "--data-dir", str(home / "data"))
    client.meterctl("restore", "node", *where, "--level", level, "--yes")
    restored = time.monotonic() - begin
    restore_cpu = children_seconds() - spent
    with meterd_node(home, SETTINGS) as node:
        ready = time.monotonic() - begin
        start_cpu = node.cpu_seconds()
        if events(node) != expected:
            raise RuntimeError(f"{events(node)} events came back of {expected}")
    say(f"{level}: restored after {restored:.1f} s, ready after {ready:.1f} s")
    return {
        "restored_seconds": round(restored, 3),
        "ready_seconds": round(ready, 3),
        # What a machine that has nothing else to do needs at least.
        "restore_cpu_seconds": round(restore_cpu, 3),
        "start_cpu_seconds": round(start_cpu, 3),
    }


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
