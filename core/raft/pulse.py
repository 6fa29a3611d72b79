"""The clock of parked groups as columns: beats, their answers, leases, and when to tick.

The other half of `steady`: what happens to a group by time alone, which is all that happens to an
idle cluster.  Every call does for all rows that are ordinary what the scalar engine would do, and
names the others.

Invariants:
  * for a parked group the columns here are true and its `Group` is out of date
  * `due` is true for every group between steps: when to tick it at the latest
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import pulse as kernels
from meterd.core.kernels.steady import MEMBERS_MAX
from meterd.core.raft.group import Group
from meterd.core.raft.progress import PROBE, REPLICATE
from meterd.core.raft.reading import FOREVER, Leases
from meterd.core.raft.settings import Settings
from meterd.core.raft.slices import CommitSlices
from meterd.core.raft.state import LEADER
from meterd.core.raft.steady import NEVER, Steady, View
from meterd.protocol.raft_messages import Beat, BeatReply
from meterd.protocol.raft_rows import Rows, Table
from meterd.protocol.raft_slices import Ints

REPLY_WIDTH: Final = len(BeatReply._fields)
Mask = NDArray[np.bool_]
# A message's fields as rows [fields, k].
Columns = NDArray[np.int64]


class Pulse:
    """Columns of the groups of one node, by group number."""

    def __init__(self, groups: dict[int, Group], steady: Steady, settings: Settings) -> None:
        count = len(steady.parked)
        self._steady, self._settings = steady, settings
        self._groups = groups
        # All of these together are what kernels take.
        self._times = times = np.zeros((kernels.TIMES, count), np.int64)
        self._marks = np.zeros((2, count), np.bool_)
        self._rounds = np.zeros((3, count, MEMBERS_MAX), np.int64)
        self.due = times[kernels.DUE]
        self.due[:] = NEVER
        for number, group in groups.items():
            self.due[number] = group.deadline
        self._election_at, self._patience = times[kernels.ELECTION_AT], times[kernels.PATIENCE]
        self._heard_at = times[kernels.HEARD_AT]
        self._leader_commit = times[kernels.LEADER_COMMIT]
        self._led_since, self._term_start = times[kernels.LED_SINCE], times[kernels.TERM_START]
        self._lease_from = times[kernels.LEASE_FROM]
        self._reads = self._marks[kernels.READS]  # do reads wait for a round?
        self._settled = self._marks[kernels.SETTLED]  # every follower streams, or is silent
        self._round = self._rounds[kernels.ROUND]
        self._round_sent_at = self._rounds[kernels.ROUND_SENT_AT]
        self._sent_at = self._rounds[kernels.MEMBER_SENT_AT]

    def hurry(self, now: int) -> None:
        """Have every group ticked at once; there may be numbers that no group has."""
        numbers = np.array(list(self._groups), np.int64)
        self.due[numbers] = np.minimum(self.due[numbers], now)

    def park(self, group: Group) -> None:
        """Take over a group that `Steady` has just taken."""
        g = group.group
        self._election_at[g], self._patience[g] = group.election_at, group.patience
        self._heard_at[g], self._leader_commit[g] = group.heard_at, group.leader_commit
        if group.role != LEADER:
            return
        self._led_since[g] = group.led_since
        self._term_start[g], self._lease_from[g] = group.term_start, group.lease_from
        self._reads[g] = bool(group.reads)
        floor = group.log.floor
        self._settled[g] = all(
            one.state == REPLICATE or (one.state == PROBE and one.is_silent and one.next > floor)
            for one in group.progress.values()
        )
        self._round_sent_at[g] = -NEVER
        for column, progress in enumerate(group.progress.values(), 1):
            self._round[g, column] = progress.round
            self._round_sent_at[g, column] = progress.round_sent_at
            self._sent_at[g, column] = progress.sent_at

    def unpark(self, group: Group) -> None:
        """Make a group true again that `Steady` gives back."""
        g = group.group
        group.deadline = int(self.due[g])
        group.election_at, group.heard_at = int(self._election_at[g]), int(self._heard_at[g])
        group.leader_commit = int(self._leader_commit[g])
        for column, progress in enumerate(group.progress.values(), 1):
            progress.round = int(self._round[g, column])
            progress.round_sent_at = int(self._round_sent_at[g, column])

    def views(self, g: Ints) -> list[View]:
        """Return parked groups as they are."""
        return self._steady.views(g, self._leader_commit[g])

    def all_have_all(self) -> bool:
        """Whether every group is parked and everybody has all that is in those that are led."""
        columns, flags, numbers, _ = self._steady.state
        return bool(kernels.all_have_all(columns, flags, numbers))

    # Beats.

    def beats(self, peer: int) -> Rows[Beat]:
        """Return the beats of parked groups that are led here and have this follower."""
        columns, flags, numbers, _ = self._steady.state
        found = np.empty((3, len(self.due)), np.int64)
        count = kernels.beats_for(peer, columns, flags, numbers, found)
        return Rows(Beat, found[:, :count].T)

    def each_once(self, groups: Ints) -> bool:
        """Whether there are columns for these groups, each of which is another one."""
        return bool(kernels.each_once(groups, len(self.due)))

    def take_beats(
        self, source: int, beats: Columns, now: int
    ) -> tuple[Table, Mask, CommitSlices | None]:
        """Take beats about groups, each once; return answers, which are there, and commits."""
        columns, flags, *_ = self._steady.state
        count = beats.shape[1]
        answers = np.empty((count, REPLY_WIDTH), np.int64)
        there, committed = np.empty(count, np.bool_), np.empty((2, count), np.int64)
        found = answers, there, committed
        raised = kernels.take_beats(source, now, columns, flags, self._times, beats, *found)
        return answers, there, CommitSlices(*committed[:, :raised]) if raised else None

    def take_answers(
        self, source: int, round_: int, sent_at: int, answers: Columns, now: int
    ) -> Ints:
        """Take answers to beats about groups, each once; return the rows that are not ordinary."""
        said = round_, sent_at, now, self._settings.retransmit_ms
        own = self._times, self._marks, self._rounds
        left = np.empty(answers.shape[1], np.int64)
        more = kernels.take_answers(source, said, *self._steady.state, *own, answers, left)
        return left[:more]

    def leases(self, now: int) -> Leases:
        """Return what parked groups may be read by."""
        columns, flags, _, masks = self._steady.state
        found = np.empty((3, len(self.due)), np.int64)
        own = self._times, self._rounds
        count = kernels.leases(now, FOREVER, columns, flags, masks, *own, found)
        return Leases(*found[:, :count])

    # Ticks.

    @property
    def deadline(self) -> int:
        """When the first group is to be ticked at the latest."""
        return int(kernels.earliest(self._times))

    def tick(self, now: int, slack: int, fit: bool) -> list[int]:
        """Move on the clocks of groups to which nothing happens; return those that need a tick."""
        columns, flags, _, masks = self._steady.state
        settings = self._settings
        said = now, slack, settings.beat_ms, settings.check_quorum_ms, settings.silent_ms
        own = self._times, self._marks, self._rounds
        left = np.empty(len(self.due), np.int64)
        count = kernels.tick(said, fit, columns, flags, masks, *own, left)
        found: list[int] = left[:count].tolist()
        return found
