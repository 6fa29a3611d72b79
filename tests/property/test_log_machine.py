"""The log as a state machine: append, crash at any moment, start again, in any order.

What was acknowledged is there, in order, once, whatever happens.
"""

from __future__ import annotations

import contextlib
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meterd.actors.log.wal_recovery import Start
from meterd.core.log.scan import Groups
from tests.support.crash_disk import CrashDisk, Crashed
from tests.support.log_life import DIRECTORY, any_entries, as_read, open_log, read_all, recover
from tests.support.replica import Replica

SEGMENT_SIZE = 12 * 1024


class LogMachine(RuleBasedStateMachine):
    """Holds a log, and the list of what it must hold."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk = CrashDisk()
        self.acknowledged: list[tuple[int, bytes]] = []
        self.last_file = 1  # that holds the last record
        self.start = Start.of(1, Groups())
        self.reopen()

    def reopen(self) -> None:
        self.log, self.spare, groups = open_log(self.disk, SEGMENT_SIZE)
        self.replica = Replica(groups)

    @rule()
    def append(self) -> None:
        entries = any_entries(self.replica, self.random)
        self.log.append(entries)
        self.acknowledged += as_read(entries)
        self.last_file = self.log.file_number

    @rule()
    def prepare(self) -> None:
        self.spare.prepare()

    @rule()
    def protect(self) -> None:
        self.log.protect()
        assert self.log.protected
        end = recover(self.disk)
        assert end is not None
        assert end.protected

    @rule()
    def stop_and_start(self) -> None:
        self.log.close()
        self.spare.close()
        self.reopen()

    @rule()
    def checkpoint(self) -> None:
        """Remember where the log stands, as a checkpoint does."""
        end = recover(self.disk)
        assert end is not None
        self.start = Start.of(self.last_file, end.groups)

    @rule(calls=st.integers(0, 14))
    def crash(self, calls: int) -> None:
        """Lose power during an append."""
        entries = any_entries(self.replica, self.random)
        self.disk.calls_left = calls
        done = False
        try:
            self.log.append(entries)
            done = True
        except Crashed:
            pass
        in_flight = as_read(entries)
        self.disk = self.disk.crashed(self.random)
        self.reopen()
        found = read_all(self.disk)
        if done:
            assert found == self.acknowledged + in_flight
        assert found in (self.acknowledged, self.acknowledged + in_flight)
        if found != self.acknowledged:
            self.last_file = self.log.file_number
        self.acknowledged = found

    @rule(calls=st.integers(0, 14))
    def kill(self, calls: int) -> None:
        """End in an append, and start again while the machine runs on."""
        entries = any_entries(self.replica, self.random)
        self.disk.calls_left = calls
        with contextlib.suppress(Crashed):
            self.log.append(entries)
        self.disk.calls_left = None
        self.reopen()
        found = read_all(self.disk)
        assert found in (self.acknowledged, self.acknowledged + as_read(entries))
        if found != self.acknowledged:
            self.last_file = self.log.file_number
        self.acknowledged = found

    @precondition(lambda self: self.acknowledged)
    @rule()
    def read_from_checkpoint(self) -> None:
        """Starting behind a checkpoint gives the same groups as reading everything."""
        behind = self.start
        whole, part = recover(self.disk), recover(self.disk, start=behind)
        assert whole is not None
        assert part is not None
        assert whole.groups.packed() == part.groups.packed()
        assert (whole.place, whole.file_number) == (part.place, part.file_number)

    @invariant()
    def holds_what_was_acknowledged(self) -> None:
        if hasattr(self, "log"):
            assert read_all(self.disk) == self.acknowledged


LogMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestLogMachine = LogMachine.TestCase


@pytest.mark.parametrize("calls", range(14))
def test_a_start_makes_the_names_durable_that_a_kill_left(calls: int) -> None:
    """A node is killed at any call of a change of files; nothing is written before they are."""
    disk = CrashDisk()
    log, _, groups = open_log(disk, SEGMENT_SIZE)
    log.append(any_entries(Replica(groups), Random(calls)))
    disk.calls_left = calls
    with contextlib.suppress(Crashed):
        log.begin_file()
    disk.calls_left = None
    open_log(disk, SEGMENT_SIZE)
    for seed in range(10):
        assert disk.crashed(Random(seed)).names(DIRECTORY) == disk.names(DIRECTORY)
