"""The horizons and the future limit of each partition: which events are too old, which too early.

A partition's own log moves them, so what an event is judged by does not depend on other partitions.
What is dropped for all partitions together (identities, segments, cells of totals files) goes by
the least of those that the node holds (`core/cluster/held_partitions.py`): the others' logs do not
come here.

Horizons are beginnings of days (identities know the day of their event) and never move back, though
the least of them may when a partition comes; that of totals is never in front of that of events.
Beside them stands the newest time that a leader has expired by: nothing is judged by it, but who
starts compares its clock with it (`clock_guard.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.tables import DAY_NS
from meterd.protocol.limits import I64_MIN
from meterd.protocol.log_format import META_GROUP, Damaged

Mask = NDArray[np.bool_]

BEGINNING = I64_MIN
EVENTS, TOTALS, FUTURE, TIME = range(4)  # rows
# Without anything else to change, the time is logged anew when it is so old.
TIME_STEP_NS = DAY_NS // 4


class Horizons:
    """Change it only through `move`, `hold`, `adopt` and `restore`."""

    def __init__(self) -> None:
        self._rows = np.full((4, META_GROUP), BEGINNING, np.int64)
        self._rows[FUTURE] = DAY_NS
        self._rows[TIME] = 0  # not known
        self._held = np.ones(META_GROUP, np.bool_)
        self._renew()

    def hold(self, held: Mask) -> None:
        """Go by these partitions from now on; before it is said, by all."""
        if not np.array_equal(held, self._held):
            self._held = held.copy()
            self._renew()

    def _renew(self) -> None:
        rows = self._rows
        held = rows[:, self._held] if self._held.any() else np.full((4, 1), BEGINNING)
        self.events, self.totals = held[[EVENTS, TOTALS]].min(axis=1).tolist()
        self.future_ns = int(rows[FUTURE].max())
        self.time = int(rows[TIME].max())  # the newest that expiry went by; 0: not known
        self.times = (int(rows[EVENTS, 0]), int(rows[FUTURE, 0]))  # of every one, when alike
        self.alike = bool((rows[[EVENTS, FUTURE]] == rows[[EVENTS, FUTURE], :1]).all())

    def move(self, groups: NDArray[np.unsignedinteger[Any]], command: Mapping[str, Any]) -> None:
        """Apply a command in these groups; in the meta group it is about every partition."""
        rows = self._rows
        at = slice(None) if META_GROUP in groups else groups.astype(np.intp)
        events = command["horizon"] // DAY_NS * DAY_NS
        totals = command.get("totals_horizon", command["horizon"]) // DAY_NS * DAY_NS
        rows[EVENTS, at] = np.maximum(rows[EVENTS, at], events)
        behind = np.minimum(rows[EVENTS, at], totals)
        rows[TOTALS, at] = np.maximum(rows[TOTALS, at], behind)
        if "future_ns" in command:
            rows[FUTURE, at] = command["future_ns"]
        rows[TIME, at] = np.maximum(rows[TIME, at], command.get("time", 0))
        self._renew()

    def adopt(self, other: Horizons, partitions: Mask) -> None:
        """Take those of some partitions (bool[256]) from another node's."""
        self._rows[:, partitions] = other._rows[:, partitions]
        self._renew()

    def behind(self, partitions: NDArray[np.intp], command: Mapping[str, Any]) -> NDArray[np.intp]:
        """Return those of the partitions in which a command would change anything of note."""
        rows = self._rows[:, partitions]
        totals = min(command["horizon"], command["totals_horizon"])
        changes = rows[EVENTS] < command["horizon"]
        changes |= (rows[TOTALS] < totals) | (rows[FUTURE] != command["future_ns"])
        changes |= command["time"] - rows[TIME] >= TIME_STEP_NS
        return partitions[changes]

    def parts(
        self, partitions: NDArray[np.intp], chosen: Mask
    ) -> Iterator[tuple[Mask, tuple[int, int]]]:
        """Yield (slices, (horizon, future limit)): the chosen slices that have these alike."""
        if self.alike:
            if chosen.any():
                yield chosen, self.times
            return
        times = self._rows[:, partitions][[EVENTS, FUTURE]]
        some = times[:, chosen]
        # Nearly always, and to find all there are takes 0.1 ms.
        if some.size and (some == some[:, :1]).all():
            yield chosen, (int(some[0, 0]), int(some[1, 0]))
            return
        for horizon, future_ns in np.unique(some, axis=1).T.tolist():
            yield chosen & (times[0] == horizon) & (times[1] == future_ns), (horizon, future_ns)

    def packed(self) -> bytes:
        """Return everything, for a checkpoint: i64[4, 256]."""
        return self._rows.astype("<i8").tobytes()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint says; an older one has no times, or one number for all."""
        if "horizons" in state:
            rows = np.frombuffer(state["horizons"], "<i8")
            count, rest = divmod(rows.size, META_GROUP)
            if rest or count not in (TIME, TIME + 1):
                raise Damaged(0, f"{rows.size} horizons")
            self._rows[:count] = rows.reshape(count, META_GROUP)
        else:
            self._rows[EVENTS], self._rows[FUTURE] = state["horizon"], state["future_ns"]
            self._rows[TOTALS] = state.get("totals_horizon", BEGINNING)
        self._renew()
