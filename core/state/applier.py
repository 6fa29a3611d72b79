"""Applies what the commit queue says is ready, slice by slice where it must; keeps what is partial.

A record of events ends with an outcome for each row.  Rows of slices that are not here or were
replaced are UNKNOWN: nothing was stored of them, so the bitmap of refused rows has them, too, and
so it has rows that still wait.

Memory: a byte a row of each record of which a part is applied.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.core.cluster.group_facts import OPENS_TERM, GroupFacts
from meterd.core.log.commit_queue import Ready
from meterd.core.log.record_cut import rows_of
from meterd.core.log.refused_rows import RefusedRows
from meterd.core.state.machine import StateMachine
from meterd.protocol.errors import (
    UNKNOWN,
    InvariantViolation,
    NotLeader,
    error_body,
)
from meterd.protocol.log_format import EVENTS, MARK, TERMS
from meterd.protocol.raft_messages import CONFIG, NOOP

Outcome = NDArray[np.uint8]


class Applier:
    """Call `events` for records of events and `other` for all others, in the queue's order."""

    def __init__(self, state: StateMachine) -> None:
        self.state = state
        self.refused = RefusedRows()
        self.facts = GroupFacts()
        self._partial: dict[int, Outcome] = {}  # of records that are not done, by sequence
        self._results: dict[int, dict[str, Any]] = {}

    def events(self, ready: Ready[Any]) -> Outcome | None:
        """Apply rows of events; return the outcome of all rows when nothing of the record is left.

        It is good until the next call.
        """
        record, (sequence, file_number, _, first_row) = ready.record, ready.location
        if ready.chosen is None:
            outcome = self.state.apply_events(record)
            self.refused.note(file_number, first_row, outcome != 0)
            return outcome
        known = self._part(ready, ready.chosen)
        if ready.chosen.any():
            rows = rows_of(record, ready.chosen)
            known[rows] = self.state.apply_events(record, ready.chosen)[rows]
            self.refused.note_some(file_number, first_row, rows & (known == 0), False)
        return self._partial.pop(sequence) if ready.done else None

    def wait(self, ready: Ready[Any]) -> None:
        """Count the rows of a record that waits as refused for as long as it does."""
        if ready.record.kind == EVENTS and ready.chosen is not None:
            self._part(ready, ready.chosen)

    def _part(self, ready: Ready[Any], chosen: NDArray[np.bool_]) -> Outcome:
        """Return what is known of the rows of a record that is applied in parts."""
        record, (sequence, file_number, _, first_row) = ready.record, ready.location
        known = self._partial.get(sequence)
        if known is None:
            known = self._partial[sequence] = np.full(record.row_count, UNKNOWN, np.uint8)
            # Of rows that were passed over the bitmap of the checkpoint speaks.  Behind that it is
            # the repair of an op that was not lost which is passed over: its rows never count.
            passed = np.zeros_like(chosen)
            if ready.passed is not None and self.refused.loaded(
                file_number, first_row + record.row_count
            ):
                passed = ready.passed
            self.refused.note_some(file_number, first_row, ~rows_of(record, passed), True)
        return known

    def other(self, ready: Ready[Any]) -> dict[str, Any] | None:
        """Apply a record without rows; return its result when nothing of it is left."""
        record = ready.record
        if record.kind == EVENTS:
            raise InvariantViolation("a record of events has rows")
        if record.kind == MARK:
            raise InvariantViolation("a snapshot is in the log; this version installs none")
        if record.kind == TERMS:
            self.facts.note_terms(record)
            return {}
        result = self._results.pop(record.sequence, None)
        if ready.chosen is None or ready.chosen.any():
            if record.kind in (NOOP, CONFIG):
                result = self._of_groups(ready)
            else:
                result = self.state.apply_command(record, ready.chosen)
        if not ready.done:
            if result is not None:
                self._results[record.sequence] = result
            return None
        if result is None:
            return {"error": error_body(NotLeader("another leader's log replaced the command"))}
        return result

    def _of_groups(self, ready: Ready[Any]) -> dict[str, Any]:
        """Apply an op about a group itself."""
        record, body = ready.record, msgpack.unpackb(ready.record.body)
        slices = record.slices if ready.chosen is None else record.slices[ready.chosen]
        for one in slices[["partition", "index", "term"]].tolist():
            if record.kind == CONFIG:
                self.facts.configure(one[0], body)
            elif body["why"] == OPENS_TERM:
                self.facts.open_term(*one)
        return {}
