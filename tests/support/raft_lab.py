"""Replicas of one group on a table: every message is held until a test lets it through."""

from __future__ import annotations

from random import Random
from typing import Any

from meterd.core.raft.events import (
    Action,
    Commit,
    Durable,
    Event,
    Moment,
    Proposal,
    Refused,
    Restored,
    Send,
    SnapshotStored,
    StoreSnapshot,
    Tick,
    TransferLeadership,
    WriteOps,
    WriteTerm,
)
from meterd.core.raft.group import Group
from meterd.core.raft.log import Log
from meterd.core.raft.settings import Settings
from meterd.core.raft.state import LEADER, Recovered
from meterd.protocol.raft_messages import Beat, Configuration, Mark, Op

EVENTS = 1
WORD = (1 << 64) - 1


def chain(before: int, term: int, index: int, kind: int, body: Any) -> int:
    return hash((before, term, index, kind, body)) & WORD


def ops_of(terms: list[int], first: int = 1, before: int = 0) -> list[Op]:
    """Return ops with these terms; equal terms up to an index make equal digests."""
    ops = []
    for index, term in enumerate(terms, first):
        before = chain(before, term, index, EVENTS, (term, index))
        ops.append(Op(index, term, before, EVENTS, 100, (term, index)))
    return ops


class Lab:
    """Groups by member, their messages, and what they asked for."""

    def __init__(
        self,
        voters: tuple[int, ...],
        learners: tuple[int, ...] = (),
        *,
        settings: Settings | None = None,
        logs: dict[int, list[int]] | None = None,
        terms: dict[int, int] | None = None,
        started_at: int = -10_000,
    ) -> None:
        """`logs`: terms of the ops that a member begins with.  `terms`: its own term."""
        self.settings = settings or Settings()
        self.configuration = Configuration(voters, learners)
        self.now = 0
        self.groups: dict[int, Group] = {}
        self.moments: dict[int, Moment] = {}
        self.actions: dict[int, list[Action]] = {}
        self.messages: list[tuple[int, int, Any]] = []
        self.boots = 0  # starts of all members
        self.slow: set[int] = set()  # members whose disk does not get on
        for member in self.configuration.members:
            ops = ops_of((logs or {}).get(member, []))
            term = (terms or {}).get(member, ops[-1].term if ops else 0)
            log = Log(Mark(0, 0, 0, self.configuration), ops)
            self._open(member, Recovered(term, 0, log), started_at)

    def _open(self, member: int, recovered: Recovered, started_at: int) -> None:
        moment = Moment(started_at)
        self.boots += 1
        moment.boot = self.boots
        group = Group(
            0,
            member,
            recovered,
            moment,
            settings=self.settings,
            random=Random(member),
            chain=chain,
        )
        moment.now = self.now
        self.groups[member], self.moments[member] = group, moment
        self.actions[member] = []
        group.start()

    # Letting things happen.

    def step(self, member: int, event: Event) -> list[Action]:
        return self._done(member, self.groups[member].step(event))

    def _done(self, member: int, actions: list[Action]) -> list[Action]:
        """Keep messages; what was written is durable at once, unless the disk is slow."""
        for action in actions:
            if isinstance(action, Send):
                self.messages.append((member, action.to, action.message))
        self.actions[member] += actions
        if any(isinstance(a, WriteOps | WriteTerm) or "Write" in type(a).__name__ for a in actions):
            self.moments[member].block += 1
            if member not in self.slow:
                self.sync(member)
        for action in actions:
            if isinstance(action, StoreSnapshot):
                self.step(member, SnapshotStored(action.mark))
        return actions

    def sync(self, member: int) -> None:
        """Everything written so far is durable."""
        self.step(member, Durable(self.moments[member].block - 1))

    def wait(self, ms: int) -> None:
        self.now += ms
        for moment in self.moments.values():
            moment.now = self.now

    def deliver(self, source: int, target: int, count: int = 1 << 30) -> int:
        """Let messages through from one to another; return how many there were."""
        chosen = [m for m in self.messages if m[:2] == (source, target)][:count]
        for message in chosen:
            self.messages.remove(message)
            if target in self.groups:
                self._done(target, self.groups[target].receive(source, message[2]))
        return len(chosen)

    def flow(self, *among: int) -> None:
        """Let everything through between these, until nothing moves."""
        members = among or tuple(self.groups)
        while sum([self.deliver(a, b) for a in members for b in members if a != b]):
            pass

    def drop(self) -> None:
        """Lose every message that is under way."""
        self.messages.clear()

    def beat_of(self, leader: int) -> Beat:
        group = self.groups[leader]
        return Beat(0, group.term, group.commit)

    def beat(self, leader: int, *followers: int, replies: bool = True) -> None:
        """Send one beat to followers and bring back their answers."""
        group, moment = self.groups[leader], self.moments[leader]
        moment.round += 1
        for follower in followers:
            answer, actions = self.groups[follower].on_beat(leader, self.beat_of(leader))
            self._done(follower, actions)
            if replies:
                round_ = moment.round - 1
                self._done(leader, group.on_beat_reply(follower, answer, round_, moment.now))

    def crash(self, member: int) -> None:
        """Forget everything volatile; come back with `restart`."""
        group = self.groups.pop(member)
        self.messages = [m for m in self.messages if member not in m[:2]]
        log = group.log
        ops = log.ops[: max(0, group.durable - log.base.index)]
        kept = Log(log.base, ops, log.holes)
        self._kept = {**getattr(self, "_kept", {}), member: (group, kept)}

    def restart(self, member: int, *, started_at: int | None = None) -> None:
        group, log = self._kept[member]
        since = self.now - 10_000 if started_at is None else started_at
        self._open(member, Recovered(group.term, group.vote, log, group.uncertain), since)

    def restart_without(self, member: int, first: int) -> None:
        """Come back without the ops from `first` on, knowing that something is lost."""
        group, log = self._kept[member]
        left = Log(log.base, log.ops[: first - 1 - log.base.index])
        lost = Recovered(group.term, group.vote, left, uncertain=True)
        self._open(member, lost, self.now - 10_000)

    def restart_without_term(self, member: int, term: int) -> None:
        """Come back without that term, its vote and its ops, knowing that something is lost."""
        _, log = self._kept[member]
        left = Log(log.base, [op for op in log.ops if op.term < term])
        self._open(member, Recovered(term - 1, 0, left, uncertain=True), self.now - 10_000)

    # Short ways.

    def elect(self, member: int, *among: int) -> None:
        """Have a member campaign when no leader was heard for long, and these vote."""
        group = self.groups[member]
        voters = [m for m in among or tuple(self.groups) if m != member]
        for _ in range(3):  # the first time it may only learn that its term is old
            self.wait(5000)
            group.election_at = group.deadline = self.now
            self.step(member, Tick())
            for _ in range(2):
                for voter in voters:
                    self.deliver(member, voter, 1)
                    self.deliver(voter, member, 1)
            if group.role == LEADER:
                return
            self.messages = [m for m in self.messages if m[0] != member]
        raise AssertionError(f"{member} was not elected")

    def propose(self, member: int, count: int = 1) -> None:
        self.step(member, Proposal(tuple([(EVENTS, 100, self.now + n) for n in range(count)])))

    def transfer(self, leader: int, target: int) -> None:
        self.step(leader, TransferLeadership(target))

    def terms(self, member: int) -> list[int]:
        return [op.term for op in self.groups[member].log.ops]

    def commit(self, member: int) -> int:
        return self.groups[member].commit

    def refusals(self, member: int) -> list[str]:
        return [a.reason for a in self.actions[member] if isinstance(a, Refused)]

    def applied(self, member: int) -> int:
        found = [a.index for a in self.actions[member] if isinstance(a, Commit)]
        found += [a.mark.index for a in self.actions[member] if isinstance(a, Restored)]
        return max(found, default=0)
