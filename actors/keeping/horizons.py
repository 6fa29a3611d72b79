"""How long events are kept, for the usage actor: what it proposes, and what the sweeper hears.

For how many days is set by a command, else by an option.  Each leader proposes to move the horizons
of the partitions that it leads; the retention sweeper deletes what lies before them.  By which time
that is done `core/state/clock_guard.py` says: a wall clock that jumps ahead expires nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from meterd.actors.machine.wall_clock import NS, running_ns, wall_ns
from meterd.actors.requests.outcomes import NO_REQUESTS
from meterd.actors.requests.splitting import PART_SECONDS_MAX, Splitting, command_proposal
from meterd.actors.starting import restored
from meterd.core.cluster.held_partitions import HeldPartitions
from meterd.core.state.clock_guard import ClockGuard, Moment
from meterd.core.state.machine import DAY_NS
from meterd.protocol import log_format

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

HOUR_NS = DAY_NS // 24

META_ONLY = np.array([log_format.META_GROUP])
# How often to look at the clock.
CLOCK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Horizons:
    """See the module."""

    def __init__(self, usage: Usage, splitting: Splitting) -> None:
        self._usage = usage
        self._splitting = splitting
        self._options = usage.options.retention
        self._due = 0.0  # monotonic seconds, of the next look at what has expired
        self._clock_due = 0.0  # and at the clock
        self._guard = ClockGuard(int(self._options.clock_jump_max * NS))
        self._held: dict[str, int] | None = None  # what the clock showed when it was not believed
        self._restored = restored.moment(usage.options.node.data_dir)
        self._told: dict[str, Any] | None = None
        self._held_partitions = HeldPartitions()

    def turn(self, now: float) -> None:
        """Expire what is old, from time to time, and tell what has changed."""
        if now >= self._clock_due:
            self._clock_due = now + CLOCK_SECONDS
            self._look_at_replicas(now)
            was_held = self._held is not None
            self._time()
            if was_held and self._held is None:
                self._due = 0.0
        if now >= self._due:
            self.expire()
            self._due = now + self._options.sweep_interval
        self.tell()

    def _look_at_replicas(self, now: float) -> None:
        """Have what is dropped go by the partitions that this node holds."""
        usage = self._usage
        if not usage.leader_map.alone:
            members, now_in = usage.state.members, usage.applier.facts.configurations
            found = self._held_partitions.look(
                usage.who.member, members, now_in, usage.groups.index, now
            )
            usage.state.horizons.hold(found)

    def expire(self) -> None:
        """Propose to move the horizons of what this node leads to where the retention has them."""
        usage, command = self._usage, self._command(self._days)
        partitions = usage.state.horizons.behind(usage.led, command)
        if len(partitions):
            usage.propose(log_format.EXPIRE, partitions, command)

    def propose(self, rid: bytes, request_id: int, days: int) -> None:
        """Have every replica keep events for so many days from now on; the answer comes later.

        Where this node leads everything it comes when the horizons have moved, too; other leaders
        move theirs when they see the days.
        """
        usage, command = self._usage, {"op": "retention_set", "days": days}
        if not usage.leader_map.is_mine(log_format.META_GROUP):
            version = usage.state.registry.version
            proposal = command_proposal(log_format.META, [log_format.META_GROUP], command, version)
            asked = (rid, request_id, "retention_set")
            group = log_format.META_GROUP
            self._splitting.commands(asked, [(group, *proposal)], PART_SECONDS_MAX)
            return
        origin = msgpack.packb([(rid, request_id, "retention_set")])
        led = usage.led
        alone = len(led) == log_format.META_GROUP
        answers = (NO_REQUESTS, origin) if alone else (origin, NO_REQUESTS)
        usage.propose(log_format.META, META_ONLY, command, answers[0])
        if len(led):
            usage.propose(log_format.EXPIRE, led, self._command(days), answers[1])

    def accept_clock(self, rid: bytes, request_id: int) -> dict[str, Any] | None:
        """Believe what this node's clock shows, and expire by it; what to answer, or None when the
        answer comes as soon as the horizons have moved.

        With the log the others learn what time it is of the partitions that this node leads.
        """
        usage = self._usage
        self._guard.accept(_now())
        command = self._command(self._days)
        partitions = usage.state.horizons.behind(usage.led, command)
        self.tell()
        if not len(partitions):
            return self.result()
        origin = msgpack.packb([(rid, request_id, "clock_accept")])
        usage.propose(log_format.EXPIRE, partitions, command, origin)
        return None

    def result(self) -> dict[str, Any]:
        """Return what is answered when the horizons have moved."""
        return {"days": self._days, "horizon": self._usage.state.horizon}

    def forget_told(self) -> None:
        """The retention sweeper has started anew: it must be told again."""
        self._told = None

    def tell(self) -> None:
        """Tell the sweeper what it may delete, if that has changed.

        It goes back when a partition comes whose horizon is older.
        """
        usage = self._usage
        told = {
            "days": self._days,
            "set": usage.state.retention_days is not None,
            "horizon": usage.state.horizon,
            "first_needed": usage.first_needed,
            "clock": self._held,
        }
        if told == self._told:
            return
        if self._told is not None and self._told["days"] != told["days"]:
            self._due = 0.0  # what is led here moves now, whoever was asked
        self._told = told
        usage.announce_expiry()  # what is folded is folded by this
        usage.send("retention_sweeper", [b"retention", msgpack.packb(told)])

    @property
    def _days(self) -> int:
        """For how many days events are kept: as was set by a command, else by the option."""
        set_days = self._usage.state.retention_days
        return self._options.days if set_days is None else set_days

    def _command(self, days: int) -> dict[str, Any]:
        future_ns = self._options.future_hours * HOUR_NS
        return {"op": "expire", "future_ns": future_ns} | self._beginnings(days)

    def _beginnings(self, days: int) -> dict[str, int]:
        """Return the beginnings of the oldest days of which events, and totals, are kept, and the
        time by which that is so.

        After a restore they stay where they are, until the grace is over.
        """
        now, state = self._time(), self._usage.state
        data_dir = self._usage.options.node.data_dir
        if now < restored.held_until(data_dir, self._options.grace_after_restore):
            return {
                "horizon": state.horizon,
                "totals_horizon": state.totals_horizon,
                "time": now,
            }
        today = now // DAY_NS
        return {
            "time": now,
            "horizon": (today - days) * DAY_NS,
            "totals_horizon": (today - (self._options.totals_days or days)) * DAY_NS,
        }

    def _time(self) -> int:
        """Return the time (UTC ns) by which events expire; say when the clock is not believed."""
        usage, now = self._usage, _now()
        believed = self._guard.look(now, max(usage.state.horizons.time, self._restored))
        ahead = self._guard.ahead
        usage.telemetry.set("retention_clock_ahead_seconds", ahead / NS)
        if ahead and self._held is None:
            self._held = {"shown": now.wall, "believed": believed}
            logger.warning(
                "the clock is not believed: events expire by the time that is known to have passed;"
                " meterctl retention run --accept-clock if the clock is right",
                extra={"fields": {"ahead_hours": ahead // HOUR_NS} | self._held},
            )
        elif not ahead and self._held is not None:
            self._held = None
            logger.info("the clock is believed again", extra={"fields": {"time": believed}})
        return believed


def _now() -> Moment:
    return Moment(wall_ns(), running_ns())
