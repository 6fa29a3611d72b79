"""This node's replicas of all groups: proposals and the engine's wishes become records.

Sans-I/O around `raft/fast_node.py`: proposals, durable sequences, ticks and envelopes go in;
records to append, envelopes to send, and what is committed come out.

The engine numbers blocks, the log numbers records: a block's number is the sequence of its first
record, and it is durable when its last record is.

A group whose only voter is this node commits what is durable here, so its records say so when they
are appended: the log's writer tells usage itself.  Of all others usage is told what is committed.

Invariants:
  * sequences rise by one from record to record
  * a proposal's time is after that of every record that was ever appended here
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.cluster import raft_log
from meterd.core.cluster.proposals import Proposal
from meterd.core.kernels import steady as kernels
from meterd.core.log.group_logs import GroupStart
from meterd.core.raft.events import (
    Accepted,
    Commit,
    Durable,
    ForgottenSlices,
    MetLeader,
    Moment,
    Refused,
    RoleChanged,
    Tick,
    WriteOps,
    WriteSnapshot,
)
from meterd.core.raft.fast_node import FastNode
from meterd.core.raft.group import Group
from meterd.core.raft.log import Log
from meterd.core.raft.node import NodeEvent, Output, ProposeSlices, Received, Request
from meterd.core.raft.settings import Settings
from meterd.core.raft.slices import AcceptedSlices, CommitSlices
from meterd.core.raft.standing import Heard
from meterd.core.raft.state import LEADER, Random, Recovered
from meterd.protocol.log_format import CONFIG, GROUP_COUNT
from meterd.protocol.raft_messages import Envelope, Mark, Op, node_of
from meterd.protocol.raft_slices import Ints

NONE: Final[Ints] = np.zeros(0, np.int64)
# Kinds of actions and writes; written as unions they would be made anew at each look.
COMMITS: Final = (CommitSlices, Commit)
ACCEPTED: Final = (AcceptedSlices, Accepted)
CONFIGURING: Final = (WriteOps, WriteSnapshot)
# A proposal counts as under way no longer: its groups may have lost their leader.
FLIGHT_MS: Final = 1_000


class OnDisk(NamedTuple):
    """The body of an op that the log held at the start: its record lies there."""

    file_number: int
    offset: int


class Clock(NamedTuple):
    """What time it is."""

    now: int  # monotonic ms
    wall: int  # UTC ns


class Append(NamedTuple):
    """A record to make durable."""

    sequence: int
    head: bytes
    payload: bytes | memoryview
    commits: bool  # durable here is committed: nobody else need have it
    cause: Any  # of the proposal that it is, else None
    groups: Ints  # whose ops are here
    index: Ints  # type: ignore[assignment]


class Step(NamedTuple):
    """What is to be done, in this order."""

    appends: list[Append]
    envelopes: list[tuple[int, Envelope]]
    committed: tuple[Ints, Ints]  # groups, and up to where each is; not what `commits` has said
    refused: list[Refused]  # slices of a proposal; with an append the rest of it was taken
    actions: list[Any]  # of the engine, all others


class Replicas:
    """Change it only through `propose`, `durable`, `receive`, `applied`, `tick` and `step`."""

    def __init__(
        self,
        starts: list[GroupStart],
        clock: Clock,
        *,
        cluster: int,
        member: int,
        boot: int,
        sequence: int,
        leader_time: int,
        random: Random,
        settings: Settings | None = None,
        seeds: Iterable[int] = (),
        heard: Mapping[int, Heard] | None = None,
    ) -> None:
        """`sequence`, `leader_time`: of the log's last record, and the latest of all.

        `heard`: of other members' logs, before this start.
        """
        settings = settings or Settings()
        self.member, self._own = member, node_of(member)
        self._sequence, self._leader_time = sequence, leader_time
        self._moment = Moment(clock.now, sequence + 1)
        fields: dict[str, Any] = {
            "settings": settings,
            "random": random,
            "chain": raft_log.chain_one,
        }
        groups = [
            Group(number, member, recovered(start), self._moment, **fields)
            for number, start in enumerate(starts)
        ]
        self._node = FastNode(
            chain_many=raft_log.chain_many,
            cluster=cluster,
            member=member,
            boot=boot,
            moment=self._moment,
            groups=groups,
            seeds=seeds,
            settings=settings,
            heard=heard,
        )
        for group in groups:
            if group.uncertain:
                group.write_term()  # so that a later start knows from when on it may be certain
        # Of what is not durable: last sequence, number, and groups and indices of its ops.
        self._blocks: deque[tuple[int, int, list[tuple[Ints, Ints]]]] = deque()
        # Was something committed already of what `durable` took last, and is led here?
        self.is_awaited = False
        self._alone = np.array([self._is_alone(group) for group in range(GROUP_COUNT)], np.bool_)
        self._all_alone = bool(self._alone.all())
        self._told = np.zeros(GROUP_COUNT, np.int64)  # up to where records commit when durable
        self._committed = np.zeros(GROUP_COUNT, np.int64)
        # Of each proposal that is not committed: its groups, their indices, and when it was made.
        self._flights: deque[tuple[Ints, Ints, int]] = deque()
        self.leaders: NDArray[np.uint8] = np.zeros(GROUP_COUNT, np.uint8)  # node numbers
        self._led_terms: NDArray[np.int64] = np.zeros(GROUP_COUNT, np.int64)
        self._opened = False

    @property
    def node(self) -> FastNode:
        """The engine, for those who only look."""
        return self._node

    @property
    def waiting(self) -> bool:
        """Is anything appended and not yet durable?"""
        return bool(self._blocks)

    @property
    def deadline(self) -> int:
        """When to tick at the latest, in monotonic ms."""
        return self._node.deadline

    @property
    def is_alone(self) -> bool:
        """Is there no group that needs anybody else?"""
        return self._all_alone

    @property
    def opened(self) -> bool:
        """Does every group lead itself, and commit, that needs nobody else for it?"""
        if not self._opened:
            own = [self._node.groups[group] for group in np.flatnonzero(self._alone).tolist()]
            self._opened = all(g.role == LEADER and g.commit >= g.term_start for g in own)
        return self._opened

    @property
    def map_version(self) -> int:
        """Return a number that rises with every leader of any group that becomes known.

        It is the sum of the newest terms whose leaders are known, so nodes that know the same
        leaders have the same number, and it does not fall but by a start.
        """
        return int(self._led_terms.sum())

    def led(self) -> tuple[Ints, Ints]:
        """Return the groups that this node leads, and their terms."""
        groups = np.flatnonzero(self.leaders == node_of(self._node.member))
        return groups, self._led_terms[groups]

    def hear_leader(self, member: int, groups: Ints, terms: Ints) -> list[Request]:
        """Another node says what it leads: that counts where this one is no member.

        Returns what to ask the engine for where this one is, and knows of no leader.
        """
        node, wanted = node_of(member), []
        known = (self.leaders[groups] == node) & (self._led_terms[groups] == terms)
        news = ~known & (terms >= self._led_terms[groups])
        for group, term in zip(groups[news].tolist(), terms[news].tolist(), strict=True):
            configuration = self._node.groups[group].log.configuration
            if self._node.member not in configuration.members:
                self.leaders[group] = node
                self._led_terms[group] = term
            elif not self.leaders[group] and member not in configuration.voters:
                wanted.append(Request(group, MetLeader(member)))
        return wanted

    def digest_at(self, group: int, index: int) -> int | None:
        """Return the digest of an op that this replica knows, for `wire_check`."""
        return self._node.digest_at(group, index)

    def propose(self, proposal: Proposal, cause: Any, clock: Clock) -> Step:
        """Have one proposal ordered: what is taken of it is one record."""
        self._leader_time = max(clock.wall, self._leader_time + 1)
        ops = raft_log.ops_of(proposal, self._leader_time)
        step = self.step(ProposeSlices(ops, [cause] * len(ops.groups)), clock, cause)
        for append in step.appends if not self._all_alone else ():
            self._flights.append((append.groups, append.index, clock.now))
        return step

    def flights(self, clock: Clock) -> int:
        """Return how many proposals are under way: appended, and not committed by others yet."""
        while self._flights:
            groups, index, since = self._flights[0]
            if clock.now - since < FLIGHT_MS and (self._committed[groups] < index).any():
                break
            self._flights.popleft()
        return len(self._flights)

    def durable(self, sequence: int, clock: Clock) -> Step | None:
        """All records up to this one are on stable storage; None when nothing follows from it."""
        block = 0
        self.is_awaited = False
        while self._blocks and self._blocks[0][0] <= sequence:
            _, block, ops = self._blocks.popleft()
            for groups, index in ops:
                done = groups[self._committed[groups] >= index]
                self.is_awaited |= self.leads_any(done)
        return self.step(Durable(block), clock) if block else None

    def leads_any(self, groups: Ints) -> bool:
        """Is one of these groups led by this node?"""
        return bool(np.count_nonzero(self.leaders[groups] == self._own))

    def receive(self, envelope: Envelope, clock: Clock) -> Step:
        """Take what a peer has sent; bodies of its ops are `RecordSlice`s whose chain is right."""
        return self.step(Received(envelope), clock)

    def applied(self, groups: Ints, index: Ints, clock: Clock) -> Step:
        """Usage has applied each of these groups up to an index."""
        return self.step(ForgottenSlices(groups, index), clock)

    def tick(self, clock: Clock) -> Step:
        """Do what is due."""
        return self.step(Tick(), clock)

    def step(self, event: NodeEvent, clock: Clock, cause: Any = None) -> Step:
        """Take any event of the engine."""
        self._moment.block = self._sequence + 1
        output = self._node.step(clock.now, clock.wall // 1_000_000, event)
        appends = self._appends(output, cause) if output.block else []
        groups, index = NONE, NONE
        refused: list[Refused] = []
        actions: list[Any] = []
        for action in output.actions:
            if self._all_alone and isinstance(action, COMMITS):
                continue  # its records have said so
            if isinstance(action, CommitSlices):
                groups, index = _joined(groups, index, action.groups, action.index)
            elif isinstance(action, Commit):
                one = np.array([action.group]), np.array([action.index])
                groups, index = _joined(groups, index, *one)
            elif isinstance(action, RoleChanged):
                self.leaders[action.group] = node_of(action.leader)
                if action.leader:
                    self._led_terms[action.group] = action.term
                actions.append(action)
            elif isinstance(action, Refused):
                refused.append(action)
            elif not isinstance(action, ACCEPTED):
                actions.append(action)
        if len(groups) and not self._all_alone:
            found = np.empty((2, len(groups)), np.int64)
            known = self._committed, self._told
            count = kernels.raise_to(*known, groups, index, found)
            groups, index = found[:, :count]
        return Step(appends, output.envelopes, (groups, index), refused, actions)

    def _appends(self, output: Output, cause: Any) -> list[Append]:
        for write in output.records:
            if isinstance(write, CONFIGURING):
                self._alone[write.group] = self._is_alone(write.group)
                self._all_alone = bool(self._alone.all())
        appends = []
        for record in raft_log.written(output.records, self._sequence + 1):
            commits = self._all_alone
            if not commits:
                some = record.groups if len(record.groups) else slice(None)
                commits = bool(self._alone[some].all())
                if commits:
                    self._told[record.groups] = record.index
            source = record.source
            if source is not None:
                self._leader_time = max(self._leader_time, source.leader_time)
            why = None if source is None else cause
            found = (record.sequence, record.head, record.payload, commits, why)
            appends.append(Append(*found, record.groups, record.index))
        self._sequence += len(appends)
        ops = [] if self._all_alone else [(one.groups, one.index) for one in appends]
        self._blocks.append((self._sequence, output.block, ops))
        return appends

    def _is_alone(self, group: int) -> bool:
        return self._node.groups[group].log.configuration.voters == (self.member,)


def recovered(start: GroupStart) -> Recovered:
    """Return a group as the engine wants it, from what recovery has found."""
    configurations = dict(start.configurations)
    _, configuration = start.configurations[0]
    mark = Mark(start.index, start.mark_term, start.digest, configuration)
    ops, holes = [], []
    for row in start.ops:
        index, kind = int(row["index"]), int(row["kind"])
        low, high = row["digest"].tolist()
        place: Any = OnDisk(int(row["file"]), int(row["offset"]))
        body = configurations.get(index, place) if kind == CONFIG else place
        if row["damaged"]:
            body = None
        ops.append(Op(index, int(row["term"]), low | high << 64, kind, int(row["size"]), body))
        if row["damaged"]:
            holes.append(index)
    log = Log(mark, ops, holes)
    log.floor = 0  # how far back the files reach shows when somebody asks for what is there
    return Recovered(start.term, start.vote, log, start.uncertain)


def _joined(groups: Ints, index: Ints, more: Ints, up_to: Ints) -> tuple[Ints, Ints]:
    if not len(groups):
        return more, up_to
    return np.concatenate([groups, more]), np.concatenate([index, up_to])
