"""Says of rows that ingest refused what they are, for the usage actor.

A refused row may name an event that is stored: then it is a duplicate or a conflict, else it is
rejected, and that is final.  So it is judged when everything is applied that came before it in its
partition, also what waits for the other replicas: groups do not wait for each other, so that the
record of a row is applied says nothing about it.  In a cluster a leader that was deposed may not
know that, so it asks first, as for a question (`questions/reads.py`).

What cannot be judged is undecided: its client asks again.
Bounded by what the router admits, and by `HELD_MAX`; beyond that the oldest is undecided.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.actors.frames.sockets import Frame
from meterd.actors.questions.reads import Waiting
from meterd.actors.requests.outcomes import Origin, in_order, parse_origin
from meterd.core.staging import Refusals
from meterd.protocol.errors import UNKNOWN
from meterd.protocol.log_format import GROUP_COUNT, Record

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

# What waits for what came before it; more say that a partition is stuck.
HELD_MAX = 1_000
# How long to wait for the other nodes where nobody has said how long to wait for the outcome.
FRESH_SECONDS = 2.0

Outcome = NDArray[np.uint8]


class _Marks(NamedTuple):
    """Up to where groups must be applied."""

    groups: NDArray[np.intp]  # ascending
    last: NDArray[np.uint64]  # index of each


class _Held(NamedTuple):
    """Refused rows, and the record that they travelled with."""

    origin: Origin
    refusals: Refusals
    marks: _Marks
    outcome: Outcome  # of the record's rows
    record: Record | None = None
    before: Outcome | None = None  # what the rows were before their record


class Judging:
    """The usage actor tells it what comes and what was applied."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._marks: dict[int, _Marks] = {}  # of records that are not applied, by sequence
        self._before: dict[int, Outcome] = {}  # of records of which a part is applied
        self._held: list[_Held] = []  # the oldest first
        self._wanted = np.zeros(GROUP_COUNT, np.bool_)  # groups for which some of these wait

    # What comes

    def on_frame(self, frame: Frame) -> None:
        """Take requests of which nothing needs the log."""
        origin = parse_origin(frame)
        if origin.refusals is not None:
            none = np.zeros(0, np.uint8)
            marks = self._marks_of(origin.refusals)
            self._take(_Held(origin, origin.refusals, marks, none))

    def on_record(self, record: Record, asked: Any) -> None:
        """Note what came before a record that is about to be added to the queue."""
        if isinstance(asked, Origin) and asked.refusals is not None:
            self._marks[record.sequence] = self._marks_of(asked.refusals)

    def _marks_of(self, refusals: Refusals) -> _Marks:
        groups = np.unique(refusals.partitions()).astype(np.intp)
        return _Marks(groups, self._usage.queue.last_index()[groups])

    # From apply

    def before(self, sequence: int, refusals: Refusals) -> None:
        """A part of a record is about to be applied."""
        if sequence not in self._before:
            self._before[sequence] = self._usage.state.judge(refusals)

    def record_done(self, origin: Origin, record: Record, outcome: Outcome) -> None:
        """Nothing of a record with refused rows is left."""
        assert origin.refusals is not None
        marks, before = self._marks.pop(record.sequence), self._before.pop(record.sequence)
        if not self._usage.leader_map.alone:
            # It may wait; a large payload is a place in memory that others wait for.
            record = record._replace(payload=memoryview(bytes(record.payload)))
        # The outcome is good until the next call only.
        self._take(_Held(origin, origin.refusals, marks, outcome.copy(), record, before))

    def applied(self, record: Record) -> None:
        """More of a record is applied: judge what has waited for it."""
        if not self._held or not self._wanted[record.slices["partition"]].any():
            return
        due = [held for held in self._held if self._is_due(held.marks)]
        if due:
            self._held = [held for held in self._held if not self._is_due(held.marks)]
            self._look_what_is_wanted()
            for held in due:
                self._judge_when_fresh(held)

    # How it judges

    def _take(self, held: _Held) -> None:
        if self._is_due(held.marks):
            self._judge_when_fresh(held)
            return
        self._held.append(held)
        if len(self._held) > HELD_MAX:
            self._leave_undecided(self._held.pop(0))
        self._look_what_is_wanted()

    def _look_what_is_wanted(self) -> None:
        self._wanted[:] = False
        for held in self._held:
            self._wanted[held.marks.groups] = True

    def _is_due(self, marks: _Marks) -> bool:
        """Is applied what came before?  Another leader may have replaced some of it."""
        queue = self._usage.queue
        last = np.minimum(marks.last, queue.last_index()[marks.groups])
        return bool((queue.groups.index[marks.groups] >= last).all())

    def _judge_when_fresh(self, held: _Held) -> None:
        if self._usage.leader_map.alone:
            self._judge(held)
            return
        wait = held.origin.wait
        until = time.monotonic() + FRESH_SECONDS if wait is None else wait.due
        waiting = Waiting(lambda: self._judge(held), lambda error: self._leave_undecided(held))
        self._usage.reads.when_fresh(held.marks.groups.tolist(), until, waiting)

    def _judge(self, held: _Held) -> None:
        judged = self._usage.state.judge(held.refusals)
        if held.record is not None and held.before is not None:
            judged = in_order(held.origin, held.record, held.outcome, held.before, judged)
        self._usage.answer_events(held.origin, held.outcome, judged, held.record)

    def _leave_undecided(self, held: _Held) -> None:
        judged = np.full(len(held.refusals.rows), UNKNOWN, np.uint8)
        self._usage.answer_events(held.origin, held.outcome, judged, held.record)
