"""Faults of real nodes: processes, files and disks; one run is one fault, a start, and an audit.

Clients send numbered events without rest, through the faults as well.  What a node holds after a
fault must be the first so many of them, each once, and all that were acknowledged.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import zmq

from meterd.actors.backups.shelf import Shelf
from meterd.actors.backups.verifying import Verification
from meterd.client import Client, Event
from meterd.core.log_scan import FileScan
from meterd.protocol.body import pack
from meterd.protocol.envelope import RequestHeader, encode_request
from meterd.protocol.errors import MeterdError
from meterd.protocol.log_format import ACTIVE_NAME, SECTOR_SIZE, full_name
from tests.support import steady_load
from tests.support.disk_campaign import Run
from tests.support.fault_book import Violation
from tests.support.fault_campaign import NAMED, flip_bit
from tests.support.loop_disk import LoopDisk
from tests.support.node import ROOT, Node
from tests.support.steady_load import SteadyLoad, check_prefix
from tests.support.waiting import eventually

SETTINGS = {
    "METERD__WAL__SEGMENT_SIZE": "4MiB",
    "METERD__WAL__RETENTION_DAYS": "0",
    "METERD__WAL__MIN_SEGMENTS": "1",
    "METERD__STORAGE__CHECKPOINT_EVENTS": "20000",
    "METERD__STORAGE__CHECKPOINT_INTERVAL": "2s",
    "METERD__STORAGE__COPY_GRACE": "0s",
    "METERD__COMPACTION__ENABLED": "false",
    "METERD__COMPACTION__IO_LIMIT": "8MiB",
    "METERD__BACKUP__IO_LIMIT": "16MiB",
    "METERD__DISK__STOP_FREE": "1MiB",
    "METERD__DISK__HARD_FREE": "0",
    "METERD__DISK__BALLAST": "0",
    "METERD__DISK__WARN_FREE": "1MiB",
    "METERD__DISK__WARN_FREE_RATIO": "0",
}
REST = 0.02
DAY = 86_400_000_000_000
IO_ERROR = 74
# How many events a twin stores behind what a node holds.
TWIN_EVENTS = 4 * steady_load.BATCH


class StubbornLoad(SteadyLoad):
    """Sends what was not acknowledged again, whatever the answer was; holds still when told."""

    def __init__(self, address: str) -> None:
        super().__init__(address, rest=REST)
        self.still = threading.Lock()

    def _send(self, client: Client) -> None:
        with self.still:  # until all events of the batch are decided
            while not self._stop.is_set():
                try:
                    super()._send(client)
                    break
                except MeterdError:
                    self._stop.wait(REST)
        self._stop.wait(REST)  # so that others get the lock


class Campaign:
    """One node through many faults."""

    def __init__(self, node: Node, load: StubbornLoad, home: Path) -> None:
        self.node, self.load, self.home = node, load, home
        self.backups = home / "backups"
        self._context: zmq.Context[Any] = zmq.Context.instance()

    def fire(self, kind: str, **fields: Any) -> None:
        """Send a request whose answer nobody waits for."""
        socket = self.node.dealer(self._context)
        socket.setsockopt(zmq.LINGER, 1_000)
        socket.send_multipart(encode_request(RequestHeader(1, kind, 60_000), pack(fields)))
        socket.close()

    def after(self, seconds: float) -> None:
        """Let the moment come that was drawn."""
        threading.Event().wait(seconds)

    def kill_and_audit(self) -> None:
        self.node.kill9()
        acknowledged = self.load.acknowledged
        self.node.start()
        self.audit(acknowledged)

    def audit(self, acknowledged: int) -> None:
        """While nothing is sent, and all that was sent is acknowledged by now."""
        with self.load.still, self.node.client(timeout=60) as client:
            held = check_prefix(client, acknowledged)
            assert held == self.load.acknowledged, (held, self.load.acknowledged)
        eventually(lambda: self.load.acknowledged > held, "events are taken again", 60)

    def more(self, events: int) -> None:
        enough = self.load.acknowledged + events
        eventually(lambda: self.load.acknowledged >= enough, "events are taken", 60)


@contextmanager
def campaign(data_dir: Path | None = None, events: int = 5_000) -> Iterator[Campaign]:
    """A node under load that holds so many events."""
    home = Path(tempfile.mkdtemp(prefix="mreal", dir="/tmp"))
    try:
        with Node(data_dir=data_dir, environment=SETTINGS) as node:
            with Client([node.address]) as client:
                steady_load.put_metrics(client)
            with StubbornLoad(node.address) as load:
                made = Campaign(node, load, home)
                made.backups.mkdir()
                made.more(events)
                yield made
    finally:
        shutil.rmtree(home)


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


class Restores:
    """A backup that is restored again and again, the program killed in between."""

    def __init__(self, run: Campaign) -> None:
        self._run = run
        for backup_type in ("full", "incr"):
            run.more(5_000)
            done = _meterctl(
                "-n",
                run.node.address,
                "backup",
                "create",
                "--to",
                run.backups,
                "--type",
                backup_type,
            )
            assert done.wait() == 0
        shelf = Shelf.at(str(run.backups))
        self._events = max(one.events for one in shelf.contents().manifests.values())

    def run(self, random: Random) -> None:
        """Into nothing, or in the place of a directory."""
        target = self._run.home / "restored"
        shutil.rmtree(target, ignore_errors=True)
        command = (
            "restore",
            "node",
            "--from",
            self._run.backups,
            "--data-dir",
            target,
            "--yes",
            "--level",
            random.choice(("checksum", "replay")),
        )
        is_there = random.random() < 0.5
        if is_there:
            assert _meterctl(*command).wait() == 0
            (target / "lock").touch()
        before = _names(target)
        process = _meterctl(*command)
        if random.random() < 0.7:
            eventually(
                lambda: list(target.parent.glob("restored.*")) or process.poll() is not None,
                "it has begun",
            )
            self._run.after(random.random() * 0.4)
        else:
            self._run.after(random.random() * 1.5)
        process.kill()
        process.wait()
        after = _names(target)
        whole = (target / "restored.json").exists()
        assert after == before or whole, f"a part of a restore is in place: {sorted(after)}"
        if random.random() < 0.5 or not whole:
            assert _meterctl(*command).wait() == 0
        assert not list(target.parent.glob("restored.restoring-*"))
        with Node(data_dir=target, environment=SETTINGS) as node, node.client(timeout=60) as client:
            assert check_prefix(client, self._events) == self._events
        for path in target.parent.glob("restored.before-*"):
            shutil.rmtree(path)


def _names(directory: Path) -> dict[str, int]:
    if not directory.exists():
        return {}
    return {path.name: path.stat().st_ino for path in directory.iterdir()}


def _meterctl(*arguments: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "bin" / "meterctl"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# Bit flips


class Flips:
    """A directory in which one bit flips, again and again, each time before a start."""

    def __init__(self, run: Campaign) -> None:
        """Takes the node's directory when it has a file of every kind."""
        node = run.node
        run.more(5_000)
        for kind in ("checkpoint", "checkpoint", "backup_hold"):
            run.fire(kind)
            run.more(5_000)
        done = _meterctl("-n", node.address, "backup", "create", "--to", run.backups)
        assert done.wait() == 0
        run.load.__exit__(None, None, None)
        self._events = run.load.acknowledged
        if node.process is not None:
            node.kill9()
        node.start()
        assert node.stop() == 0
        self._node = node
        self._safe = run.home / "safe"
        shutil.copytree(node.data_dir, self._safe, ignore=shutil.ignore_patterns("run", "lock"))

    def kinds(self) -> list[str]:
        """Patterns of the files that there are, but for second names and space in reserve."""
        names = {re.sub(r"\d{3,}", "*", path.name) for path in self._safe.iterdir()}
        others = ("held", ".open", "checkpoint.bin.spare")
        return sorted(name for name in names if not any(one in name for one in others))

    def run(self, pattern: str, random: Random) -> str:
        """Return how it ended."""
        node = self._node
        paths = [path for path in sorted(node.data_dir.glob(pattern)) if path.stat().st_size]
        if not paths:
            return "empty"
        flip_bit(random.choice(paths), random)
        written = len(node.log())
        try:
            node.start(wait=False)
            assert node.process is not None
            eventually(
                lambda: node.process.poll() is not None or node.page().get("state") == "running",
                "it serves or ends",
                120,
            )
            return self._outcome(written)
        finally:
            if node.process is not None and node.process.poll() is None:
                node.kill9()
            self._mend()

    def _outcome(self, written: int) -> str:
        node = self._node
        assert node.process is not None
        if node.process.poll() is None:
            try:
                with node.client(timeout=3) as client:
                    held = check_prefix(client, self._events)
                assert held == self._events
                return "right"
            except MeterdError as error:
                if node.process.poll() is None and not NAMED.search(node.log()[written:]):
                    raise Violation(f"refused without file and offset: {error}") from error
        said = node.log()[written:]
        if not NAMED.search(said):
            raise Violation(f"ended without file and offset: {said[-1000:]}")
        return "refused, file and offset named"

    def _mend(self) -> None:
        for path in self._node.data_dir.iterdir():
            if path.name not in ("run", "lock"):
                path.unlink()
        for path in self._safe.iterdir():
            shutil.copy2(path, self._node.data_dir / path.name)


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


def run_real(kind: str, seeds: range, note: Callable[[str, str], None]) -> None:
    """Run a kind with each seed and note (kind, how it ended); the first violation ends it.

    Raises Violation, AssertionError.
    """
    if kind in ALONE:
        for seed in seeds:
            ALONE[kind](seed)
            note(kind, "right")
        return
    with campaign(events=25_000) as run:
        restores = Restores(run) if kind == RESTORE else None
        for seed in seeds:
            if restores is not None:
                restores.run(Random(seed))
            else:
                UNDER_LOAD[kind](run, Random(seed))
            note(kind, "right")


def run_flips(runs: int, first: int, note: Callable[[str, str], None]) -> None:
    """Let so many bits flip in each kind of file, one at a time, and start the node."""
    with campaign(events=25_000) as run:
        flips = Flips(run)
        for pattern in flips.kinds():
            for seed in range(first, first + runs):
                outcome = flips.run(pattern, Random(f"{pattern} {seed}"))
                if outcome != "empty":
                    note(f"bit flip: {pattern}", outcome)
