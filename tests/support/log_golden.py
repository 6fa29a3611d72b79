"""The log files kept in tests/data/log: what a file of today's format looks like, good and damaged.

They were written once (`python -m tests.support.log_golden`) and are read by every later version;
a change that cannot read them, or writes other bytes, is a new storage version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from meterd.core.log.scan import FileScan, Groups, verify_chain
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from tests.support.crash_disk import CrashDisk
from tests.support.log_life import DIRECTORY, events_entry, meta_entry, open_log
from tests.support.replica import Replica

FOLDER = Path(__file__).resolve().parents[1] / "data" / "log"
EXPECTED = "expected.json"
SEGMENT_SIZE = 16 * 1024


def good_file() -> tuple[bytearray, list[int]]:
    """Return a file of four blocks, and where they begin (and the last one ends)."""
    disk, random = CrashDisk(), Random(1)
    log, _, groups = open_log(disk, SEGMENT_SIZE)
    replica = Replica(groups)
    offsets = [log.place.offset]
    for entries in (
        [meta_entry(replica, random, 100)],
        [events_entry(replica, random, 3), events_entry(replica, random, 60)],
        [],
        [meta_entry(replica, random, 1700)],
    ):
        log.append(entries)
        offsets.append(log.place.offset)
    return disk.content(f"{DIRECTORY}/{log_format.ACTIVE_NAME}"), offsets


def files() -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every golden file."""
    content, (_, second, third, last, end) = good_file()
    yield "good.wal", bytes(content)
    yield "full.wal", bytes(content[:end])
    for name, changes in {
        "torn.wal": {last + 512: bytes(512)},
        "torn-without-header.wal": {last: bytes(512)},
        "missing-block.wal": {second: bytes(third - second)},
        "damaged-header.wal": {third + 20: b"\xff"},
        "damaged-record.wal": {second + 64 + 200: b"\xff\xff"},
        "damaged-last-block.wal": {last + 64 + 8: b"\x01"},
        "damaged-padding.wal": {third - 1: b"\x01"},
        "damaged-file-header.wal": {40: b"\xff"},
    }.items():
        changed = bytearray(content)
        for at, data in changes.items():
            changed[at : at + len(data)] = data
        yield name, bytes(changed)


def describe(name: str, content: bytes) -> dict[str, Any]:
    """Return what reading a file finds."""
    found: dict[str, Any] = {"records": [], "corrupt": None, "end": None, "torn": None}
    groups = Groups()
    try:
        scan = FileScan(name, memoryview(content), active=name != "full.wal")
        for block in scan:
            for record in block.records:
                verify_chain(record, groups)
                groups.follow(record)
                found["records"].append(
                    {
                        "offset": record.offset,
                        "sequence": record.sequence,
                        "kind": record.kind,
                        "rows": record.row_count,
                        "partitions": record.slices["partition"].tolist(),
                        "last_digest": record.slices["digest"][-1].tobytes().hex(),
                    }
                )
        found["end"], found["torn"] = list(scan.end), scan.torn and list(scan.torn)
    except Corrupt as error:
        found["corrupt"] = {"offset": error.offset, "reason": error.reason}
    return found


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    expected = {}
    for name, content in files():
        (FOLDER / name).write_bytes(content)
        expected[name] = describe(name, content)
    (FOLDER / EXPECTED).write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
