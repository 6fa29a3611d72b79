"""Segments made of log files on disk: however they are read, whatever is wrong with them, and
whenever the process ends."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from meterd.actors.housekeeping import segment_making
from meterd.actors.housekeeping.segment_making import SegmentMaker
from meterd.actors.questions.log_files import LogFiles
from meterd.core.questions.question import Question
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import full_name
from meterd.protocol.segment_format import SUFFIXES, SegmentName
from tests.support.log_builder import IDENTITY_KEY, LoggedEvent
from tests.support.log_directory import LogDirectory
from tests.support.segments import EVER, counted, registry_of

KEY = np.frombuffer(IDENTITY_KEY, np.uint64).copy()
REGISTRY = registry_of(3)
ROWS = 339
NAME = SegmentName(1, 1)


@pytest.fixture
def log(tmp_path) -> LogDirectory:
    """A full file of blocks from one sector to dozens, one of them larger than small windows."""
    log = LogDirectory(tmp_path)
    for count in (1, 3, 200, 1, 1, 40, 2, 90, 1):
        events = [LoggedEvent(f"a/{n % 7}", f"{count}-{n}", 1 + n % 3, n, n) for n in range(count)]
        log.write(events, {0})
    log.seal(segmented=False)
    return log


def make(log: LogDirectory, rows: int = ROWS) -> None:
    maker = SegmentMaker(str(log.path), KEY)
    maker.make(1, log.bitmap(1), rows, lambda done: None)


def held(log: LogDirectory) -> dict:
    """What the complete segment of the file says, to a process that starts; or nothing."""
    segments = LogFiles(str(log.path), IDENTITY_KEY).segments
    found = segments.complete()
    if not found:
        return {}
    reader = segments.open(found[0])
    question = Question("accounts", metric="m2", **EVER)
    return counted(reader, question, REGISTRY)


def as_bytes(log: LogDirectory) -> list[bytes]:
    return [(log.path / NAME.file(suffix)).read_bytes() for suffix in SUFFIXES]


@pytest.mark.parametrize("window", [64, 512, 1024, 4096, 5000, 20_000])
def test_a_segment_does_not_depend_on_the_windows(log, window, monkeypatch):
    monkeypatch.setattr(os, "urandom", bytes)
    monkeypatch.setattr(segment_making.time, "time_ns", lambda: 5)
    make(log)
    whole = as_bytes(log)
    monkeypatch.setattr(segment_making, "WINDOW_SIZE", window)
    maker = SegmentMaker(str(log.path), KEY)
    for _ in range(2):  # the second time in memory that was used
        maker.make(1, log.bitmap(1), ROWS, lambda done: None)
        assert as_bytes(log) == whole
    assert maker.count_rows(1) == ROWS


@pytest.mark.parametrize("window", [1024, 1 << 20])
@pytest.mark.parametrize("left", [-1, -600, -9_000, -1_000_000, 4096])
def test_a_file_that_is_cut_is_corrupt(log, window, left, monkeypatch):
    monkeypatch.setattr(segment_making, "WINDOW_SIZE", window)
    path = log.path / full_name(1)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(Corrupt):
        make(log)
    assert held(log) == {}


@pytest.mark.parametrize("tail", [bytes(512), bytes(30), b"\1" * 512, b"MBLK" + b"\xff" * 508])
def test_a_file_that_goes_on_behind_its_blocks_is_corrupt(log, tail):
    path = log.path / full_name(1)
    end = path.stat().st_size
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(Corrupt, match=f"offset {end}"):
        make(log)


def test_every_bit_of_the_file_that_counts_is_checked(log):
    """The segment will be all that is left, so damage must not enter it."""
    path = log.path / full_name(1)
    whole = path.read_bytes()
    make(log)
    good = held(log)
    for at in range(4096, len(whole), 37):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(bytes(damaged))
        try:
            make(log)
        except Corrupt:
            continue
        assert whole[at] == 0  # padding of a block or a record
        assert held(log) == good


def test_fewer_or_more_rows_than_were_applied_is_corrupt(log):
    for rows in (ROWS - 1, ROWS + 1):
        with pytest.raises(Corrupt, match="applied"):
            make(log, rows)


def killed_at(log: LogDirectory, write: int, before: bool) -> None:
    """Make the segment in a process that ends before or after its n-th file is in place."""
    child = os.fork()
    if child == 0:
        done = [0]
        real = segment_making.atomic_write

        def atomic_write(*args) -> None:
            if before and done[0] == write:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args)
            done[0] += 1
            if not before and done[0] == write + 1:
                os.kill(os.getpid(), signal.SIGKILL)

        segment_making.atomic_write = atomic_write
        make(log)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("write", [0, 1, 2])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_ends_leaves_all_or_nothing(log, write, before, again):
    """Also when it replaces a segment that was there."""
    make(log)
    good = held(log)
    if not again:
        for suffix in SUFFIXES:
            (log.path / NAME.file(suffix)).unlink()
    killed_at(log, write, before)
    assert held(log) in ({}, good)
    is_whole = (write, before) == (2, False) or (again and (write, before) == (0, True))
    assert (held(log) == good) == is_whole
    make(log)
    assert held(log) == good
