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

from meterd.core.raft.group import Group
from meterd.core.raft.progress import REPLICATE
from meterd.core.raft.reading import FOREVER, Leases
from meterd.core.raft.settings import Settings
from meterd.core.raft.slices import CommitSlices
from meterd.core.raft.state import LEADER
from meterd.core.raft.steady import MEMBERS_MAX, NEVER, Steady, View
from meterd.protocol.raft_messages import BeatReply
from meterd.protocol.raft_rows import Table
from meterd.protocol.raft_slices import Ints

REPLY_WIDTH: Final = len(BeatReply._fields)
Mask = NDArray[np.bool_]


class Pulse:
    """Columns of the groups of one node, by group number."""

    def __init__(self, groups: dict[int, Group], steady: Steady, settings: Settings) -> None:
        count = len(steady.parked)
        self._steady, self._settings = steady, settings
        self.due = np.full(count, NEVER)
        self._groups = groups
        for number, group in groups.items():
            self.due[number] = group.deadline
        self._election_at, self._patience, self._heard_at, self._leader_commit = np.zeros(
            (4, count), np.int64
        )
        self._led_since, self._term_start, self._lease_from = np.zeros((3, count), np.int64)
        self._reads = np.zeros(count, np.bool_)  # do reads wait for a round?
        self._replicates = np.zeros(count, np.bool_)  # every follower streams
        self._round, self._round_sent_at, self._sent_at = np.zeros(
            (3, count, MEMBERS_MAX), np.int64
        )

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
        states = [progress.state for progress in group.progress.values()]
        self._replicates[g] = all(state == REPLICATE for state in states)
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

    # Beats.

    def beats(self) -> tuple[Table, Ints]:
        """Return the beats of parked groups that have followers, and whom each is for.

        Members [k, MEMBERS_MAX], 0 where there is none.
        """
        steady = self._steady
        g = np.flatnonzero(steady.parked & steady.leads & ~steady.lone)
        return np.stack([g, steady.term[g], steady.commit[g]], axis=1), steady.members[g]

    def take_beats(
        self, source: int, beats: Table, now: int
    ) -> tuple[Table, Mask, CommitSlices | None]:
        """Take beats about groups, each once; return answers, which are there, and commits."""
        steady = self._steady
        every, terms, _ = beats.T
        fast = (
            steady.parked[every]
            & ~steady.leads[every]
            & (steady.leader[every] == source)
            & (steady.term[every] == terms)
        )
        g, term, told = (beats if fast.all() else beats[fast]).T
        last = steady.last[g]
        commit = np.minimum(told, last)
        more = commit > steady.commit[g]
        committed = None
        if more.any():
            committed = CommitSlices(g[more], commit[more])
            steady.commit[committed.groups] = committed.index
        self._heard_at[g] = now
        self._election_at[g] = now + self._patience[g]
        self._leader_commit[g] = np.maximum(told, self._leader_commit[g])
        answers = np.zeros((len(beats), REPLY_WIDTH), np.int64)
        match = np.minimum(last, steady.durable_to[g])
        answers[fast] = np.stack([g, term, last, match, 0 * g, 0 * g, 0 * g + 1], axis=1)
        return answers, fast, committed

    def take_answers(
        self, source: int, round_: int, sent_at: int, answers: Table, now: int
    ) -> Ints:
        """Take answers to beats about groups, each once; return the rows that are not ordinary."""
        steady = self._steady
        g, term, accepted, match, need_from, uncertain_since, room = answers.T
        mine = steady.members[g] == source
        column = mine.argmax(axis=1)
        sent = np.maximum(steady.sent_at[g], self._sent_at[g, column])
        late = now - sent >= self._settings.retransmit_ms
        fast = (
            steady.parked[g]
            & steady.leads[g]
            & (steady.term[g] == term)
            & mine.any(axis=1)
            & ~self._reads[g]
            & (room == 1)
            & (need_from == 0)
            & (uncertain_since == 0)
            & steady.streams[g, column]
            & (match <= steady.match[g, column])
            & ~(late & (accepted < steady.last[g]))
        )
        at = g[fast], column[fast]
        steady.accepted[at] = accepted[fast]
        known = self._round_sent_at[at]
        newer = round_ > self._round[at]
        self._round_sent_at[at] = np.where(newer, np.maximum(sent_at, known), known)
        self._round[at] = np.maximum(round_, self._round[at])
        return np.flatnonzero(~fast)

    def _quorum_sent_at(self, g: Ints, now: int) -> Ints:
        """Return the latest time since which a majority of voters is known to have followed."""
        steady = self._steady
        times = np.where(steady.voters[g], self._round_sent_at[g], -NEVER)
        times[:, 0] = now  # a parked leader is a voter
        times.sort(axis=1)
        found: Ints = times[np.arange(len(g)), MEMBERS_MAX - steady.quorum[g]]
        return found

    def leases(self, now: int) -> Leases:
        """Return what parked groups may be read by."""
        steady = self._steady
        g = np.flatnonzero(steady.parked & steady.leads & (steady.commit >= self._lease_from))
        alone = steady.quorum[g] == 1
        sent_at = np.where(alone, FOREVER, self._quorum_sent_at(g, now))
        return Leases(g, self._term_start[g], sent_at)

    # Ticks.

    def tick(self, now: int, slack: int, fit: bool) -> list[int]:
        """Move on the clocks of groups to which nothing happens; return those that need a tick."""
        steady, settings = self._steady, self._settings
        g = np.flatnonzero(now + slack >= self.due)
        if not len(g):
            return []
        follows = steady.parked[g] & ~steady.leads[g] & (now < self._election_at[g])
        leads = steady.parked[g] & steady.leads[g] & self._replicates[g] & fit
        some = g[leads]
        limit = settings.check_quorum_ms
        lost = (now - self._led_since[some] >= limit) & (
            self._quorum_sent_at(some, now) < now - limit
        )
        leads[leads] = ~lost
        self.due[g[follows]] = self._election_at[g[follows]]
        some = g[leads]
        self.due[some] = np.where(steady.lone[some], NEVER, now + settings.beat_ms)
        left: list[int] = g[~(follows | leads)].tolist()
        return left
