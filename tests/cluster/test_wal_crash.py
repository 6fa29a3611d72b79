"""Crashes the real log at every call to the disk, with every kind of image, thousands of times.

The checker: after each crash the log opens, holds every acknowledged record, in order, once, and
beyond them at most the records of the one block that was being written.  The same checker must
find fault with a disk whose fdatasync, or whose sync of the directory, does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from pathlib import Path
from random import Random

import pytest

from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_log import Log
from meterd.actors.log.wal_spare import Spare
from meterd.core.log.scan import Groups
from meterd.protocol.errors import Corrupt, DiskFull, FsyncFailed
from tests.support.crash_disk import CrashDisk, Crashed, TellsLies
from tests.support.log_life import any_entries, as_read, open_log, read_all
from tests.support.replica import Replica

# Small enough that a life sees several rotations.
SEGMENT_SIZE = 16 * 1024
LIVES = 4


class Lost(AssertionError):
    """The log does not hold what it must."""


class Life:
    """One log through several crashes."""

    def __init__(self, seed: int, lies: TellsLies = TellsLies.NOTHING) -> None:
        self.random = Random(seed)
        self.disk = CrashDisk(lies)
        self.acknowledged: list[tuple[int, bytes]] = []
        self.in_flight: list[tuple[int, bytes]] = []
        self.calls = 0

    def live(self, calls: int, blocks: int) -> None:
        """Start, append, and crash before the call with this number (or after the last block)."""
        self.disk.calls_left = calls
        try:
            log, spare, groups = open_log(self.disk, SEGMENT_SIZE)
            self.disk.calls_left, left = None, self.disk.calls_left
            self.check()
            self.disk.calls_left = left
            replica = Replica(groups)
            for _ in range(blocks):
                if self.random.random() < 0.3:
                    spare.prepare()
                if self.random.random() < 0.2:
                    log.protect()
                entries = any_entries(replica, self.random)
                self.in_flight = as_read(entries)
                log.append(entries)
                self.acknowledged += self.in_flight
                self.in_flight = []
        except Crashed:
            pass
        self.disk = self.disk.crashed(self.random)

    def check(self) -> None:
        """Compare the log with what was acknowledged; what is there now, stays."""
        found = read_all(self.disk)
        if found not in (self.acknowledged, self.acknowledged + self.in_flight):
            raise Lost(f"{len(self.acknowledged)} acknowledged, {len(found)} found")
        self.acknowledged, self.in_flight = found, []

    def check_last(self) -> None:
        open_log(self.disk, SEGMENT_SIZE)
        self.check()


def run_life(seed: int, lies: TellsLies = TellsLies.NOTHING) -> Life:
    life = Life(seed, lies)
    for _ in range(LIVES):
        life.live(calls=life.random.randrange(60), blocks=12)
    life.check_last()
    return life


@pytest.mark.slow
def test_no_crash_loses_doubles_or_damages_a_record() -> None:
    acknowledged = 0
    for seed in range(700):
        try:
            acknowledged += len(run_life(seed).acknowledged)
        except (Lost, Corrupt) as failure:
            pytest.fail(f"seed {seed}: {failure!r}")
    assert acknowledged > 10_000, "the lives are too short to prove anything"


@pytest.mark.slow
def test_a_crash_before_every_single_call_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """Rotations, repairs and the very first file included; each point with several images."""
    for seed in range(8):
        for calls in range(90):
            life = Life(seed)
            life.live(calls, blocks=14)
            life.live(calls=Random(calls).randrange(40), blocks=3)  # crashes while it repairs
            life.check_last()
    repairs = [record.message for record in caplog.records]
    assert sum("torn" in message for message in repairs) > 20
    assert sum("between two log files" in message for message in repairs) > 20


@pytest.mark.slow
@pytest.mark.parametrize("lies", [TellsLies.SYNC, TellsLies.SYNC_DIRECTORY])
def test_the_checker_finds_a_disk_that_does_not_sync(lies: TellsLies) -> None:
    found = 0
    for seed in range(60):
        try:
            run_life(seed, lies)
        except (Lost, Corrupt):
            found += 1
    assert found > 20, f"only {found} of 60 lives on a lying disk were found out"


def test_a_sync_that_fails_loses_nothing_that_is_acknowledged_behind_it() -> None:
    """The process starts again while the machine runs on; then the power goes.

    What the sync has not written looks as if it were: the log must not build on it.
    """
    failed = 0
    for seed in range(150):
        life = Life(seed)
        life.disk.syncs_left = life.random.randrange(40)
        for _ in range(2):
            try:
                log, _, groups = open_log(life.disk, SEGMENT_SIZE)
                life.check()
                replica = Replica(groups)
                for _ in range(life.random.randrange(12)):
                    entries = any_entries(replica, life.random)
                    life.in_flight = as_read(entries)
                    log.append(entries)
                    life.acknowledged += life.in_flight
                    life.in_flight = []
            except FsyncFailed:
                failed += 1
        life.disk.syncs_left = None
        open_log(life.disk, SEGMENT_SIZE)
        life.check()
        life.disk = life.disk.crashed(life.random)
        try:
            life.check_last()
        except (Lost, Corrupt) as failure:
            pytest.fail(f"seed {seed}: {failure!r}")
    assert failed > 50


def test_a_full_disk_delays_the_rotation_and_loses_nothing() -> None:
    """The file system fills up; an operator makes room a while later."""
    life = Life(1)
    life.disk.room = 2 * SEGMENT_SIZE
    log, _, groups = open_log(life.disk, SEGMENT_SIZE)
    replica = Replica(groups)
    with pytest.raises(DiskFull):
        for _ in range(100):
            entries = any_entries(replica, life.random)
            log.append(entries)
            life.acknowledged += as_read(entries)
    assert log.file_number == 2
    with pytest.raises(DiskFull):
        log.append(entries)
    life.check()
    life.disk.room = SEGMENT_SIZE
    log.append(entries)
    life.acknowledged += as_read(entries)
    assert log.file_number == 3
    life.check()


@pytest.mark.slow
def test_no_room_for_names_delays_and_loses_nothing() -> None:
    """Every create and rename may find no room, at any time; then a crash, at any time.

    What waits meanwhile becomes a larger block, as in the WAL-writer.
    """
    delays = rotations = 0
    for seed in range(300):
        life = Life(seed)
        for _ in range(LIVES):
            seen = live_without_names(life)
            delays, rotations = delays + seen[0], rotations + seen[1]
        life.check_last()
    assert delays > 1_000 and rotations > 500


def live_without_names(life: Life) -> tuple[int, int]:
    """Live as `Life.live` does; return how often there was no room, and how many files began."""
    random, disk = life.random, life.disk
    calls = random.randrange(120)
    disk.calls_left = calls
    delays = rotations = 0
    try:
        log, spare, groups = opened_at_last(disk, random)
        disk.calls_left, left = None, disk.calls_left
        disk.has_no_name = lambda: False
        life.check()
        disk.calls_left, disk.has_no_name = left, lambda: random.random() < 0.5
        replica, first = Replica(groups), log.file_number
        for _ in range(12):
            entries = any_entries(replica, random)
            while True:
                life.in_flight = as_read(entries)
                try:
                    log.append(entries)
                    break
                except DiskFull:
                    delays += 1
                    with contextlib.suppress(DiskFull):
                        if random.random() < 0.3:
                            log.protect()
                    if len(entries) < 20:
                        entries += any_entries(replica, random)
            life.acknowledged += life.in_flight
            life.in_flight = []
            rotations = log.file_number - first
            with contextlib.suppress(DiskFull):
                spare.prepare()
            with contextlib.suppress(DiskFull):
                if random.random() < 0.2:
                    log.protect()
    except Crashed:
        pass
    life.disk = disk.crashed(random)
    return delays, rotations


def opened_at_last(disk: CrashDisk, random: Random) -> tuple[Log, Spare, Groups]:
    """Start again until the start finds room, as systemd does."""
    disk.has_no_name = lambda: random.random() < 0.3
    while True:
        with contextlib.suppress(DiskFull):
            return open_log(disk, SEGMENT_SIZE)


def test_a_crash_while_the_disk_is_full_is_survived() -> None:
    life = Life(2)
    life.disk.room = SEGMENT_SIZE
    log, _, groups = open_log(life.disk, SEGMENT_SIZE)
    replica = Replica(groups)
    with pytest.raises(DiskFull):
        for _ in range(100):
            entries = any_entries(replica, life.random)
            log.append(entries)
            life.acknowledged += as_read(entries)
    life.disk = life.disk.crashed(life.random)
    log, _, _ = open_log(life.disk, SEGMENT_SIZE)
    life.check()
    life.disk.room = SEGMENT_SIZE
    log.append(entries)
    life.acknowledged += as_read(entries)
    life.check()


@pytest.mark.slow
def test_a_writer_that_is_killed_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """kill -9 on the real file system, at moments the kernel chooses, a dozen times over."""
    total = 0
    for life in range(12):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            append_for_ever(str(tmp_path), life, writing)
        os.close(writing)
        told = b""
        while len(told) < 16 * (10 + life):
            told += os.read(reading, 4096)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := os.read(reading, 4096):
            told += rest
        os.close(reading)
        whole = told[: len(told) // 16 * 16]
        acknowledged = list(struct.iter_unpack("<QQ", whole))
        open_log(LocalDisk(), SEGMENT_SIZE, str(tmp_path))[0].close()
        found = [(number, len(raw)) for number, raw in read_all(LocalDisk(), str(tmp_path))]
        assert [number for number, _ in found] == list(range(1, len(found) + 1))
        assert found[total : total + len(acknowledged)] == acknowledged
        total = len(found)


def append_for_ever(directory: str, seed: int, acknowledge: int) -> None:
    """Append to the log and tell sequence and size of each record, until killed."""
    try:
        log, _, groups = open_log(LocalDisk(), SEGMENT_SIZE, directory)
        replica, random = Replica(groups), Random(seed)
        while True:
            entries = any_entries(replica, random)
            log.append(entries)
            sizes = [(number, len(raw)) for number, raw in as_read(entries)]
            os.write(acknowledge, b"".join(struct.pack("<QQ", *size) for size in sizes))
    finally:
        os._exit(1)  # never back into the test runner
