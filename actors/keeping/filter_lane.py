"""Keeps the filter of identities beside an actor's loop: one thing at a time, in a thread.

What is being flushed is added to it before it becomes a run.  When it is full, and after a start, a
sweep makes a larger one in turns.  Both write to it, so they share one lane, and what is being
flushed comes first: until it is a run, memory grows.
"""

from __future__ import annotations

from collections.abc import Callable

from meterd.actors.machine.background import Background
from meterd.core.kernels.tables import DAY_NS
from meterd.core.state.identity_filter import IdentityFilter
from meterd.core.state.identity_runs import Entries
from meterd.core.state.machine import StateMachine


class FilterLane:
    """See the module."""

    def __init__(self, state: StateMachine, lines_min: int) -> None:
        self._state = state
        self._filter = IdentityFilter(lines_min)
        self._lane: Background[Callable[[], None]] = Background("filter")
        self._flushing: Entries | None = None
        self._read: Entries | None = None  # by the turn that is under way
        self.has_flushing = False  # is what is being flushed in the filter?

    @property
    def may_begin_flush(self) -> bool:
        """Is the memory of the last flush free for others?"""
        return self._read is None

    def begin_flush(self, entries: Entries) -> None:
        """Add these from the next step on, and see to it that nothing forgets them."""
        self._flushing, self.has_flushing = entries, False

    def end_flush(self) -> None:
        """They are a run in use."""
        self._flushing = None

    def step(self, wait: bool) -> None:
        """Take over what has ended and begin what is due; `wait`: until the filter has_flushing."""
        self._take(wait)
        if wait and self._adds:
            self._begin()
            self._take(wait)
        if not self._lane.busy:
            self._begin()

    def settle(self, beat: Callable[[], None]) -> None:
        """Wait until the filter holds everything; `beat` is called many times meanwhile."""
        while self._lane.busy or self._begin():
            beat()
            self._take(wait=True)

    def finish(self) -> None:
        """Wait for what is under way."""
        self._take(wait=True)

    @property
    def _adds(self) -> bool:
        return self._flushing is not None and not self.has_flushing

    def _take(self, wait: bool) -> None:
        done = self._lane.take(wait)
        if done is not None:
            done()

    def _begin(self) -> bool:
        """Begin what is due; return whether anything is.  Only when the lane is free."""
        if self._adds:
            self._lane.start(self._add)
            return True
        if not self._filter.sweeping:
            count = self._state.in_runs + (0 if self._flushing is None else len(self._flushing))
            if not self._filter.is_full(count):
                return False
            self._filter.begin(count)
            self._state.use_filter(self._filter.arrays)
        self._begin_turn()
        return True

    def _add(self) -> Callable[[], None]:
        if self._flushing is not None:
            self._filter.add(self._flushing)
        return self._added

    def _added(self) -> None:
        self.has_flushing = True
        self._state.filter_has_flushing()

    def _begin_turn(self) -> None:
        runs, entries = self._state.runs, self._flushing
        day = max(0, self._state.horizon // DAY_NS)
        self._read = entries

        def work() -> Callable[[], None]:
            self._filter.fill(runs, entries, day)
            return self._turned

        self._lane.start(work)

    def _turned(self) -> None:
        self._read = None
        if self._filter.move_edge():
            self._state.use_filter(self._filter.arrays)
