"""What must hold after every step; the numbers are those of docs/REPLICATION.md."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from meterd.core.raft.events import (
    Restored,
    RoleChanged,
    Write,
    WriteOps,
    WriteTerm,
)
from meterd.core.raft.group import Group
from meterd.core.raft.membership import is_single_change
from meterd.core.raft.node import GoneBack
from meterd.core.raft.state import CANDIDATE, LEADER
from meterd.protocol.raft_messages import (
    CONFIG,
    Append,
    AppendReply,
    BeatReplies,
    Beats,
    Configuration,
    Envelope,
    Hello,
    HelloReply,
    Repair,
    RepairReply,
    Vote,
    VoteReply,
)
from meterd.protocol.raft_slices import AckSlices, AppendSlices

if TYPE_CHECKING:
    from tests.sim.machine import Machine
    from tests.sim.world import World

# Types of messages; no other message has a type derived from one of them.
WITHOUT_PROMISE = {Beats, Hello, HelloReply, Append, Repair, RepairReply, AppendSlices}


class Violation(AssertionError):
    """Consensus is broken."""


def require(holds: bool, rule: str, *facts: object) -> None:
    if not holds:
        raise Violation(f"{rule}: {' '.join(str(fact) for fact in facts)}")


class Checks:
    """Knows everything that ever happened, as no replica can."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leaders: dict[tuple[int, int], int] = {}  # group, term -> member
        self.history: dict[tuple[int, int, int], int] = {}  # group, index, term -> digest
        self.canonical: dict[int, list[tuple[int, int]]] = {}  # group -> (term, digest) by index
        self.commit_terms: dict[int, list[int]] = {}  # group -> term it was committed in, by index
        self.terms: dict[tuple[int, int], tuple[int, int]] = {}  # member, group -> durable term
        # group -> every configuration that a leader has written, by index and term
        self.configurations: dict[int, dict[tuple[int, int], Configuration]] = {}
        self.releases = False  # messages leave that were written before, maybe before damage
        self.floor: dict[int, int] = {}  # group -> highest index seen by a client

    # I1, I4: leaders.

    def role_changed(self, machine: Machine, action: RoleChanged) -> None:
        assert machine.node is not None
        if action.role != LEADER:
            return
        key = (action.group, action.term)
        require(key not in self.leaders, "I1 one leader a term", key, self.leaders.get(key))
        self.leaders[key] = machine.member
        self.world.cover("election")
        log = machine.node.groups[action.group].log
        require(not log.holes, "I4 a leader has no damaged ops", key)
        # A leader of an old term, elected by late votes, lacks what newer terms committed.
        count = bisect_left(self.commit_terms.get(action.group, []), action.term)
        require(log.last >= count, "I4 a leader has all committed ops", key, log.last, count)
        if count > log.base.index:
            digest = self.canonical[action.group][count - 1][1]
            require(log.digest_at(count) == digest, "I4 a leader has all committed ops", key)

    # I2, I6, I9: writes.

    def written(self, machine: Machine, records: list[Write]) -> None:
        assert machine.node is not None
        for record in records:
            if isinstance(record, WriteOps):
                for op in record.ops:
                    key = (record.group, op.index, op.term)
                    if self.history.setdefault(key, op.digest) != op.digest:
                        require(False, "I2 log matching", key)
                    if op.kind == CONFIG:
                        known = self.configurations.setdefault(record.group, {})
                        known[op.index, op.term] = op.body
                        self._configuration_written(machine.node.groups[record.group], op.index)
            elif isinstance(record, WriteTerm):
                self._term_written(machine, record)

    def _configuration_written(self, group: Group, index: int) -> None:
        if group.log.configuration_index != index or group.role != LEADER:
            return
        configurations = group.log._configurations
        open_ones = [at for at, _ in configurations if at > group.commit]
        require(len(open_ones) <= 1, "I9 one uncommitted configuration", open_ones)
        require(
            is_single_change(configurations[-2][1], configurations[-1][1]),
            "I9 one voter more or less",
            configurations[-2:],
        )

    def _term_written(self, machine: Machine, record: WriteTerm) -> None:
        key = (machine.member, record.group)
        term, vote = self.terms.get(key, (0, 0))
        require(record.term >= term, "I6 terms do not fall", key, term, record)
        if record.term == term:
            require(vote in (0, record.vote), "I6 one vote a term", key, vote, record)
        self.terms[key] = (record.term, record.vote)

    def disk_read(self, machine: Machine) -> None:
        """After a crash, what was not durable may be promised anew."""
        for number, image in machine.disk.groups.items():
            self.terms[machine.member, number] = (image.term, image.vote)

    def undecided(self, group: int) -> list[Configuration]:
        """Return configurations that somebody has written, and nobody knows to be committed."""
        last = len(self.canonical.get(group, ()))
        known = self.configurations.get(group, {})
        return [configuration for (index, _), configuration in known.items() if index > last]

    # I8: nothing leaves before it is durable.

    def sent(self, machine: Machine, to: int, envelope: Envelope) -> None:
        if envelope.block > machine.disk.block:
            require(False, "I8 block", envelope.block)
        for message in envelope.messages:
            if type(message) in WITHOUT_PROMISE:
                continue
            if isinstance(message, BeatReplies):
                for reply in message.replies:
                    self._acked(machine, reply.group, reply.term, reply.match)
                continue
            if isinstance(message, AckSlices):
                for ack in message.expanded():
                    self._acked(machine, ack.group, ack.term, ack.match)
                continue
            image = machine.disk.groups[message.group]
            if isinstance(message, AppendReply):
                self._acked(machine, message.group, message.term, message.match)
            elif isinstance(message, Vote):
                promised = image.term > message.term or image.vote == machine.member
                require(image.term >= message.term and promised, "I8 own vote", message)
                assert machine.node is not None
                campaigns = machine.node.groups[message.group].role == CANDIDATE
                known = not campaigns or image.last >= message.last_index
                require(image.term > message.term or known, "I8 own log", message)
            elif isinstance(message, VoteReply) and message.granted:
                promised = image.term > message.asked or image.vote == to
                require(image.term >= message.asked and promised, "I8 vote", message)

    def _acked(self, machine: Machine, number: int, term: int, match: int) -> None:
        assert machine.node is not None
        image = machine.disk.groups[number]
        if image.term < term:
            require(False, "I8 term", image.term, term)
        if image.last < match and image.term <= term:
            require(False, "I8 ack", image.last, match)
        if image.damaged and image.term == term and not self.releases:
            # What is not in memory is applied: its damage matters at the next start.
            log = machine.node.groups[number].log
            hole = min([i for i in image.damaged if i > log.base.index], default=match + 1)
            require(hole > match, "I8 ack of a damaged op", hole, match)

    # I3, I5: commit and apply.

    def committed(self, machine: Machine, group: Group, index: int) -> None:
        canonical = self.canonical.setdefault(group.group, [])
        state = machine.states[group.group]
        ops = machine.ops[group.group]
        require(index > state.applied, "commit does not move back", index)
        for at in range(state.applied + 1, min(index, len(canonical)) + 1):
            mine = (ops[at].term, ops[at].digest)
            if mine != canonical[at - 1]:
                require(False, "I5 one op an index", group.group, at, mine)
        if index <= len(canonical):
            return
        require(state.applied <= len(canonical), "I5 commit leaves a gap", state.applied)
        terms = self.commit_terms.setdefault(group.group, [])
        for at in range(len(canonical) + 1, index + 1):
            canonical.append((ops[at].term, ops[at].digest))
            terms.append(max(group.term, terms[-1] if terms else 0))
        self._on_quorum(group, index, ops[index].term)

    def _on_quorum(self, group: Group, index: int, term: int) -> None:
        """Whoever says first that an op is committed: a majority has it on disk (I3, I10)."""
        configuration = group.log.configuration
        # Who lost its disk may have acked before; nobody has its vote any more.
        gone = set(configuration.voters) - set(self.world.members())
        holders = len(gone)
        for machine in self.world.machines.values():
            image = machine.disk.groups[group.group]
            # One that has lost its tail knows that it did, and votes for nobody.
            has = image.term_at(index) == term or image.base.index > index or image.uncertain
            holders += has and machine.member in configuration.voters
        require(
            holders >= configuration.quorum,
            "I3 committed on a quorum",
            (group.group, index, term),
            configuration,
            holders,
        )

    def restored(self, machine: Machine, action: Restored) -> None:
        mark = action.mark
        canonical = self.canonical[action.group]
        require(mark.index <= len(canonical), "I7 a snapshot of committed ops", mark)
        require(canonical[mark.index - 1] == (mark.term, mark.digest), "I5 snapshot", mark)

    # I7: order of the positions.

    def stepped(self, machine: Machine) -> None:
        assert machine.node is not None
        for group in machine.node.groups.values():
            log = group.log
            if not (
                log.base.index <= group.applicable <= group.commit <= log.last >= group.durable
                and group.verified <= log.last
                and log.last_term <= group.term
            ):
                raise Violation(
                    f"I7 base {log.base.index} applied {group.applicable} commit {group.commit}"
                    f" last {log.last} durable {group.durable} verified {group.verified}"
                )

    def gone_back(self, machine: Machine, action: GoneBack) -> None:
        raise Violation(f"node {machine.number} is said to have gone back: {action}")

    # I11, I14: what clients saw.

    def acked(self, group: int, index: int) -> None:
        self.floor[group] = max(index, self.floor.get(group, 0))

    def read(self, group: int, floor: int, served: int) -> None:
        """A read that began when `floor` had been seen shows the state at `served`."""
        require(
            served >= floor, "I14 a read sees all that was seen before it", group, floor, served
        )
        self.floor[group] = max(served, self.floor.get(group, 0))

    def lease(self, machine: Machine, number: int) -> None:
        """Who serves by lease is the newest leader."""
        assert machine.node is not None
        term = machine.node.groups[number].term
        for other in self.world.machines.values():
            if other.node is not None and other is not machine:
                group = other.node.groups[number]
                newer = group.role == LEADER and group.term > term
                require(not newer, "lease while a newer leader is there", number, term, group.term)
