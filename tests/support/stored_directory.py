"""Makes a small data directory that has a file of every kind, and knows what it must answer.

`python -m tests.support.stored_directory` writes `tests/data/directory-v2-log2/`: the directory as
an archive, and what a node that opens it must say.  It is made once for each storage version and
then kept for ever, so that every later version can show that it still opens it.

The events are few and large, so that log files of the least size become full: about two thousand
rows each.  Their times, ids and values follow from their numbers.
"""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from meterd.actors.housekeeping.archive_state import ArchiveState
from meterd.actors.keeping.checkpoints import Checkpoints
from meterd.actors.keeping.erased_file import add_erasures
from meterd.actors.keeping.identity_store import IdentityStore
from meterd.actors.starting import identity
from meterd.client import Client, Event
from meterd.core.kernels.tables import Capacity
from meterd.core.state.erasures import Erasure
from meterd.core.state.machine import StateMachine
from meterd.protocol import checkpoint_format
from meterd.protocol.limits import RETENTION_DAYS_MAX
from tests.support.node import ROOT, Node
from tests.support.waiting import eventually

FOLDER = ROOT / "tests" / "data" / "directory-v2-log2"
ARCHIVE, EXPECTED = "directory.tar.xz", "expected.json"
# 2026-03-02T00:00:00Z; the last event is 60 days later.
BASE = 1_772_409_600_000_000_000
DAY = 86_400_000_000_000
SPAN = 60 * DAY
ACCOUNTS = 7
PADDING = {f"note{number}": "x" * 250 for number in range(8)}
ENVIRONMENT = {
    "METERD__WAL__SEGMENT_SIZE": "4MiB",
    "METERD__RETENTION__DAYS": str(RETENTION_DAYS_MAX),
    "METERD__WAL__RETENTION_DAYS": "36500",
    "METERD__DISK__BALLAST": "0",
}
BATCH = 500
# So the totals of all events are in memory and in checkpoints, for ten years.
DECADE = 3_650 * DAY
PERIOD = {"kind": "fixed", "duration": DECADE // 1_000_000_000, "epoch": BASE}


def event_of(number: int) -> Event:
    """One of the events."""
    account = f"acme/{number * 7919 % ACCOUNTS}"
    at = BASE + number * 7_777_777_777_777 % SPAN
    identifier = f"00000000-0000-7000-8000-{number:012x}" if number % 3 else f"event {number}"
    if number % 5 == 0:
        operation = "remove" if number % 15 == 0 else "add"
        user = {"user": f"u{number % 40}"}
        return Event(account, "seats", 1, at, identifier, operation, {**PADDING, **user})
    region = {"region": "eu" if number % 2 else "us"}
    return Event(account, "bytes", number % 1000, at, identifier, properties={**PADDING, **region})


def conflict_of(number: int) -> Event:
    """The same identity, but another content."""
    event = event_of(number)
    return Event(event.account, event.metric, 12_345, event.timestamp, event.id, event.operation)


def expected(count: int) -> dict[str, Any]:
    """What follows from the events by plain counting: sum and count by account."""
    totals: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in map(event_of, range(count)):
        counts[event.account] += 1
        if event.metric == "bytes":
            totals[event.account] += int(event.value)
    found = {"events": count, "bytes": dict(totals), "counts": dict(counts)}
    return found | {"current": dict(totals)}


def answers(client: Client, listings: bool = True) -> dict[str, Any]:
    """What a node says: as `expected`, and who has a seat."""
    span = {"start": BASE, "end": BASE + SPAN}
    names = [f"acme/{number}" for number in range(ACCOUNTS)]
    found: dict[str, Any] = {"bytes": {}, "counts": {}, "seats": {}, "current": {}}
    for name in names:
        found["bytes"][name] = int(client.usage(name, "bytes", **span).value or 0)
        now = {} if time.time_ns() < BASE + DECADE else {"start": BASE, "end": BASE + DECADE}
        found["current"][name] = int(client.usage(name, "bytes", **now).value or 0)
        seats = client.usage(name, "seats", **span)
        found["seats"][name] = int(seats.value or 0)
        found["counts"][name] = client.usage(name, "bytes", **span).count + seats.count
        if listings:
            listed = [event.id for event in client.events(name, **span)]
            assert len(listed) == len(set(listed))
            found["counts"][name] = len(listed)
    found["events"] = sum(found["counts"].values())
    return found


def send(client: Client, first: int, end: int) -> None:
    """Store events."""
    for start in range(first, end, BATCH):
        result = client.ingest([event_of(n) for n in range(start, min(end, start + BATCH))])
        assert not result.rejected and not result.conflict, result


def move_to_run(data_dir: Path) -> None:
    """Make a run of all identities that the newest checkpoint has in parts."""
    key = identity.read(str(data_dir)).identity_key
    words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
    state = StateMachine(words, Capacity(50_000, 1_000, 1_000, 10_000, 10_000))
    store = IdentityStore(str(data_dir), state, flush_at=1)
    checkpoints = Checkpoints(str(data_dir), store)
    position: dict[str, Any] = {}

    def restore(saved: dict[str, Any], arrays: dict[str, Any]) -> None:
        state.restore(saved, arrays)
        position.update({name: saved[name] for name in ("log", "position", "refused")})

    assert checkpoints.load(restore)
    for _ in range(3):
        store.step(0.0, may_flush=True)
        store.finish()
    checkpoints.save(state, position)
    assert checkpoints.step(wait=True) is None


def build(data_dir: Path, steps: tuple[int, ...] = (2_500, 4_500, 6_500, 7_000)) -> int:
    """Make the directory; return how many events it holds.

    Behind each step but the last two the identities become a run; the last events are only in
    the log.
    """
    first = 0
    for place, end in enumerate(steps):
        last = place == len(steps) - 1
        node = Node(data_dir=data_dir, environment=ENVIRONMENT)
        try:
            node.start()
            with node.client(timeout=60) as client:
                client.put_metric("bytes", "sum", dimensions=["region"], period=PERIOD)
                client.put_metric("seats", "unique", unique_on="user")
                send(client, first, end)
                client.ingest([Event("acme/1", "no such metric", 1, BASE, f"refused {place}")])
                client.ingest([conflict_of(1), event_of(2)])  # rows that the log does not store
                eventually(lambda: _all_covered(data_dir), "all full log files have segments", 60)
            if last:
                node.kill9()  # the log's end is in no checkpoint
            else:
                assert node.stop() == 0, node.log()
        finally:
            node.remove()
        if place < len(steps) - 2:
            move_to_run(data_dir)
        first = end
    return steps[-1]


def add_small_files(data_dir: Path) -> None:
    """Add what takes an archive, or segments about to be deleted, to come into being."""
    archive = ArchiveState(str(data_dir))
    archive.use("somewhere else")
    archive.stored(1, BASE)
    state = checkpoint_format.read_state((data_dir / "checkpoint.bin").read_bytes())
    add_erasures(str(data_dir), map(Erasure.from_list, state["erasures"]))


def _all_covered(data_dir: Path) -> bool:
    full = len(list(data_dir.glob("wal-*.log")))
    return len(list(data_dir.glob("seg-*.idx"))) >= full


def open_archive(folder: Path, target: Path) -> dict[str, Any]:
    """Unpack the stored directory; return what it must answer."""
    with tarfile.open(folder / ARCHIVE, "r:xz") as archive:
        archive.extractall(target, filter="data")
    found: dict[str, Any] = json.loads((folder / EXPECTED).read_text())
    return found


def pack(data_dir: Path, archive_path: Path) -> None:
    """Make the archive of a directory."""
    with (
        lzma.open(archive_path, "wb", preset=9) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(data_dir.iterdir()):
            archive.add(path, f"data/{path.name}")


def store(folder: Path = FOLDER) -> None:
    """Make the directory and keep it."""
    home = Path(__file__).resolve().parent / "made"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    try:
        data_dir = home / "data"
        count = build(data_dir)
        add_small_files(data_dir)
        copy = home / "copy"
        who = identity.read(str(data_dir))
        left_out = shutil.ignore_patterns("run", "lock", "held*", "*.open")
        shutil.copytree(data_dir, copy, ignore=left_out)
        # It lies wherever it is unpacked, and is no copy that may have caught something half.
        (copy / "node.json").write_bytes(identity.encode(replace(who, directory_inode=0)))
        node = Node(data_dir=data_dir, environment=ENVIRONMENT)
        try:
            node.start()
            with node.client(timeout=60) as client:
                found = answers(client)
        finally:
            node.remove()
        wanted = expected(count)
        assert all(found[name] == wanted[name] for name in wanted), (found, wanted)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EXPECTED).write_text(json.dumps(found, indent=1) + "\n")
        pack(copy, folder / ARCHIVE)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    store()
