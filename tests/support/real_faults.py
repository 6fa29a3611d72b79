"""Faults of real nodes: processes, files and disks; one run is one fault, a start, and an audit."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from meterd.actors.backups.shelf import Shelf
from meterd.actors.backups.verifying import Verification
from meterd.client import Event
from meterd.core.log.scan import FileScan
from meterd.protocol.log_format import ACTIVE_NAME, SECTOR_SIZE, full_name
from tests.support import steady_load
from tests.support.disk_campaign import Run
from tests.support.fault_book import Violation
from tests.support.loop_disk import LoopDisk
from tests.support.node import Node
from tests.support.real_campaign import SETTINGS, Campaign, StubbornLoad, campaign
from tests.support.real_restores import Restores
from tests.support.steady_load import check_prefix
from tests.support.waiting import eventually

DAY = 86_400_000_000_000
IO_ERROR = 74
# How many events a twin stores behind what a node holds.
TWIN_EVENTS = 4 * steady_load.BATCH

# Kills


def rotation(run: Campaign, random: Random) -> None:
    """As soon as the next log file is seen, and shortly before or after."""
    before = len(list(run.node.data_dir.glob("wal-*.open")))
    known = {path.name for path in run.node.data_dir.glob("wal-*")}
    assert before
    if random.random() < 0.7:
        eventually(
            lambda: {path.name for path in run.node.data_dir.glob("wal-*")} - known,
            "a log file is full",
            60,
        )
    run.after(random.random() * 0.01)
    run.kill_and_audit()


def checkpoint(run: Campaign, random: Random) -> None:
    run.fire("checkpoint")
    run.after(random.random() * 0.15)
    run.kill_and_audit()


def compaction(run: Campaign, random: Random) -> None:
    run.more(15_000)
    run.fire("compact", aggressive=True)
    run.after(random.random() * 1.5)
    run.kill_and_audit()


def backup(run: Campaign, random: Random) -> None:
    """What is there as a backup is whole, and holds what was acknowledged before it began."""
    acknowledged = run.load.acknowledged
    run.fire("backup_create", to=str(run.backups), type=random.choice(("full", "incr")))
    run.after(random.random() * 1.5)
    run.kill_and_audit()
    shelf = Shelf.at(str(run.backups))
    contents = shelf.contents()
    assert not contents.broken, contents.broken
    verification = Verification(shelf, contents, str(run.home), lambda _: None)
    for name, manifest in contents.manifests.items():
        assert not verification.verify(name, "replay")
        if manifest.started > time.time_ns() - 10**9:
            assert manifest.events >= acknowledged
    for name in sorted(contents.manifests)[:-2]:
        if not any(name in one.chain for one in contents.manifests.values()):
            shelf.remove(name)


# Disks that lose power, and a write that was cut short


def power(random: Random) -> None:
    """The power goes under load: what was not synced is lost."""
    with LoopDisk() as disk, campaign(disk.data_dir) as run:
        run.more(random.randrange(1, 15_000))
        run.fire(random.choice(("checkpoint", "compact", "retention_run")))
        run.after(random.random() * 0.3)
        disk.cut_power()
        run.node.kill9()
        acknowledged = run.load.acknowledged
        disk.mount_again()
        run.node.start()
        run.audit(acknowledged)
        run.node.kill9()
        run.node.start()
        run.audit(run.load.acknowledged)
        _leave(run)


def fsync_error(random: Random) -> None:
    """Every fsync fails from a moment on: the node ends by itself and takes nothing more."""
    with LoopDisk() as disk, campaign(disk.data_dir) as run:
        run.more(random.randrange(1, 15_000))
        run.after(random.random() * 0.3)
        disk.cut_power()
        _ends_with_an_error(run)
        acknowledged = run.load.acknowledged
        disk.mount_again()
        run.node.start()
        run.audit(acknowledged)
        _leave(run)


def torn(random: Random) -> None:
    """A node's next block, as its twin writes it, came to the disk in part only."""
    with campaign() as run:
        run.more(random.randrange(1, 10_000))
        run.load.__exit__(None, None, None)
        run.node.kill9()
        acknowledged = run.load.acknowledged
        twin = run.home / "twin"
        shutil.copytree(run.node.data_dir, twin, ignore=shutil.ignore_patterns("run", "lock"))
        with Node(data_dir=twin, environment=SETTINGS) as other:
            _send(other, acknowledged)
            other.kill9()
            _tear(twin, run.node.data_dir, random)
        run.node.start()
        with run.node.client(timeout=60) as client:
            check_prefix(client, acknowledged)
        if random.random() < 0.5:
            run.node.kill9()
            run.node.start()
        _send(run.node, acknowledged)
        with run.node.client(timeout=60) as client:
            assert check_prefix(client, acknowledged) == acknowledged + TWIN_EVENTS


def _send(node: Node, first: int) -> None:
    with node.client(timeout=60) as client:
        for start in range(first, first + TWIN_EVENTS, steady_load.BATCH):
            events = [steady_load.event(n) for n in range(start, start + steady_load.BATCH)]
            result = client.ingest(events)
            assert result.stored + result.duplicate == len(events)


def _tear(twin: Path, data_dir: Path, random: Random) -> None:
    """Append blocks of the twin's log, of the last one only some sectors."""
    path = data_dir / ACTIVE_NAME
    scan = FileScan(str(path), memoryview(path.read_bytes()), active=True)
    names = (full_name(scan.header.file_number), ACTIVE_NAME)
    raw = next((twin / name).read_bytes() for name in names if (twin / name).exists())
    for _ in scan:
        pass
    after = FileScan(str(twin), memoryview(raw), active=True)
    blocks = [one for one in after if one.offset >= scan.end.offset]
    large = [n for n, one in enumerate(blocks) if one.header.block_size > SECTOR_SIZE]
    if not large:
        return  # the file was full: nothing came behind its last block
    last = blocks[random.choice(large)]
    end = last.offset + last.header.block_size
    data = bytearray(raw[scan.end.offset : end])
    first = last.offset - scan.end.offset
    written = [
        at for at in range(first, len(data), SECTOR_SIZE) if any(data[at : at + SECTOR_SIZE])
    ]
    for at in random.sample(written, random.randint(1, len(written))):
        data[at : at + SECTOR_SIZE] = bytes(SECTOR_SIZE)
    with path.open("r+b") as file:
        file.seek(scan.end.offset)
        file.write(data)


def _ends_with_an_error(run: Campaign) -> None:
    process = run.node.process
    assert process is not None
    eventually(lambda: process.poll() is not None, "the node ends", 60)
    assert process.returncode == IO_ERROR, (process.returncode, run.node.log())


def _leave(run: Campaign) -> None:
    """End the load before the disk goes."""
    run.load.__exit__(None, None, None)
    assert run.node.stop() == 0, run.node.log()


# Retention and restore, each with a directory of its own


def retention(random: Random) -> None:
    """Killed while old events expire: their totals stay right."""
    old, count = time.time_ns() // DAY * DAY - 60 * DAY, 36_000
    padded = {"properties": {"pad": "x" * 220}}
    settings = SETTINGS | {"METERD__RETENTION__TOTALS_DAYS": "3650"}
    with Node(environment=settings) as node:
        with node.client(timeout=60) as client:
            client.put_metric("calls", "sum")
            for first in range(0, count, 4_000):
                ids = [f"old {number}" for number in range(first, first + 4_000)]
                client.ingest(
                    [Event("acme", "calls", 1, old + first, one, **padded) for one in ids]
                )
            now = time.time_ns()
            recent = [
                Event("acme", "calls", 1, now - n, f"new {n}", **padded) for n in range(4_000)
            ]
            for _ in range(5):
                client.ingest(recent)

        def usage() -> tuple[int, int]:
            with node.client(timeout=60) as client:
                whole = client.usage("acme", "calls", start=old - DAY, end=now + DAY)
                late = client.usage("acme", "calls", start=now - DAY, end=now + DAY)
            return int(whole.value), int(late.value)

        run = Campaign(node, StubbornLoad(node.address), node.home)
        run.fire("retention_set", days=30)
        for _ in range(3):
            run.after(random.random() * 0.3)
            run.fire("checkpoint")
            run.after(random.random() * 0.3)
            run.fire("retention_run")
        run.after(random.random() * 0.5)
        for _ in range(2):
            node.kill9()
            node.start()
            assert usage() == (count + 4_000, 4_000)
            with node.client(timeout=60) as client:
                assert client.ingest(recent[:100]).duplicate == 100
            run.fire("retention_run")
            run.after(random.random() * 0.5)


def small_disk(seed: int, what: str) -> None:
    """A disk that others fill: space or inodes."""
    run = Run(seed)
    run.plan.what = what
    report = run.run()
    if report.violations:
        raise Violation("; ".join(report.violations))


UNDER_LOAD: dict[str, Callable[[Campaign, Random], None]] = {
    "kill during rotation": rotation,
    "kill during checkpoint": checkpoint,
    "kill during compaction swap": compaction,
    "kill during backup": backup,
}
ALONE: dict[str, Callable[[int], None]] = {
    "torn write": lambda seed: torn(Random(seed)),
    "lost unsynced data": lambda seed: power(Random(seed)),
    "fsync error": lambda seed: fsync_error(Random(seed)),
    "kill during retention": lambda seed: retention(Random(seed)),
    "full disk": lambda seed: small_disk(seed, "space"),
    "no inodes": lambda seed: small_disk(seed, "inodes"),
}
RESTORE = "kill during restore"
KINDS = (*UNDER_LOAD, *ALONE, RESTORE)


@contextmanager
def stage(kind: str) -> Iterator[Callable[[int], str]]:
    """What runs a seed of a kind and says how it ended.  Raises Violation, AssertionError."""
    if kind in ALONE:
        yield lambda seed: _right(ALONE[kind], seed)
        return
    with campaign(events=25_000) as run:
        if kind == RESTORE:
            restores = Restores(run)
            yield lambda seed: _right(restores.run, Random(seed))
        else:
            yield lambda seed: _right(UNDER_LOAD[kind], run, Random(seed))


def _right(work: Callable[..., None], *arguments: Any) -> str:
    work(*arguments)
    return "right"
