"""All groups of one node: one order of blocks, one envelope per peer, one heartbeat per pair.

What a step writes is one block; the shell makes blocks durable in order and reports them.  A
message that names a block waits here until that one is durable, and nothing else waits for it:
beats are answered while the disk is slow.

A node that has just started stands aside until a majority has confirmed that its log has not gone
back (a directory restored by hand): until then it neither votes nor acks (`standing`).

Does not know: sockets, files, what ops mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from meterd.core.raft import leading
from meterd.core.raft.clock_check import ClockCheck
from meterd.core.raft.events import (
    Action,
    BeatSoon,
    Durable,
    Event,
    Forgotten,
    ForgottenSlices,
    Moment,
    Proposal,
    Send,
    Tick,
    Write,
    WriteOps,
    WriteRepair,
    WriteSnapshot,
    WriteTerm,
)
from meterd.core.raft.group import Group
from meterd.core.raft.reading import Leases, lease_of
from meterd.core.raft.settings import Settings
from meterd.core.raft.slices import AcceptedSlices, CommitSlices, WriteSlices
from meterd.core.raft.standing import Heard, Standing
from meterd.core.raft.state import LEADER
from meterd.core.raft.steady import View
from meterd.protocol.raft_messages import (
    AppendReply,
    Beat,
    BeatReplies,
    BeatReply,
    Beats,
    Envelope,
    GroupMessage,
    Hello,
    HelloReply,
    Install,
    Mark,
    Message,
    incarnation_of,
    node_of,
)
from meterd.protocol.raft_slices import AckSlices, AppendSlices, SliceOps

Outgoing = Message | AppendSlices | AckSlices
# For isinstance: a union written there would be made anew at every call.
_SLICES = (AppendSlices, AckSlices)
_WRITES = (WriteOps, WriteTerm, WriteRepair, WriteSnapshot)

# A group's tick may come so much early, which changes nothing for it: then those of hundreds of
# groups come together.
TICK_SLACK_MS = 25
# Rounds of beats for reads follow each other no faster.
ROUND_GAP_MS = 5


class Received(NamedTuple):
    envelope: Envelope


class Request(NamedTuple):
    """A client's or operator's wish, or news from the state machine, for one group."""

    group: int
    event: Event


class ProposeSlices(NamedTuple):
    """Append one op to each of many groups; of `ops` groups, kinds, sizes and bodies count."""

    ops: SliceOps
    causes: list[Any]


class Room(NamedTuple):
    """The disk has room for ops, or not."""

    room: bool


class SnapshotRead(NamedTuple):
    """The snapshot that SendSnapshot asked for."""

    group: int
    to: int
    term: int
    mark: Mark
    body: Any


class GoneBack(NamedTuple):
    """A peer has heard of a later block than this log has: stop, before anything is promised."""

    peer: int
    heard: int
    block: int


NodeEvent = (
    Tick | Durable | Received | Request | ProposeSlices | ForgottenSlices | Room | SnapshotRead
)
NodeAction = Action | AcceptedSlices | CommitSlices | GoneBack


class Output(NamedTuple):
    """What to do, in this order: write the records as one block, send, act."""

    block: int  # 0 when there are no records
    records: list[Write | WriteSlices]
    envelopes: list[tuple[int, Envelope]]
    actions: list[NodeAction]


def _may_be(group: Group, reply: AppendReply | BeatReply) -> bool:
    """Nobody has of a leader what it has not: a wrong number must not end its process."""
    is_of_now = group.role == LEADER and reply.term == group.term
    return not is_of_now or max(reply.match, reply.accepted) <= group.log.last


class Node:
    """The replicas of one node.  Change it only through `step`."""

    def __init__(
        self,
        *,
        cluster: int,
        member: int,
        boot: int,
        moment: Moment,
        groups: Iterable[Group],
        seeds: Iterable[int],
        settings: Settings,
        heard: Mapping[int, Heard] | None = None,
    ) -> None:
        """`groups` share `moment`; `seeds` are members to talk to besides those of the groups.

        `boot` rises from start to start, also when the directory is an older copy of itself: it
        is the wall clock's time, or one more than the last boot on disk if that is later.
        `heard`: what an earlier start has heard of other members' logs.
        """
        self.cluster, self.member, self.boot = cluster, member, boot
        self.settings, self.moment = settings, moment
        moment.boot = boot
        self.groups = {group.group: group for group in groups}
        self.seeds = [m for m in seeds if m != member]
        self.durable = moment.block - 1
        self.peers: list[int] = []
        self._stirred = True  # a configuration may have changed since peers were looked for
        self._find_peers()
        self.standing = Standing(member, moment.block - 1, heard or {}, self.seeds)
        self._aside = dict(self.groups)  # groups that neither vote nor ack yet
        self.clocks = ClockCheck(settings.clock_off_ms)
        self.beat_at = moment.now
        self._round_at = moment.now - ROUND_GAP_MS
        self._boots: dict[int, int] = {}  # peer -> newest boot
        self._rounds: dict[int, int] = {}  # peer -> newest round of that boot
        self._incarnations: dict[int, int] = {}  # node -> newest incarnation
        self._held: dict[int, list[tuple[int, Outgoing]]] = {}  # block -> messages
        self._held_count = 0
        self._writers: dict[int, list[int]] = {}  # block -> groups that wrote to it
        self._deadline: int | None = None  # not looked for since this step began
        self._begin_step()
        for group in self.groups.values():
            group.start()
        self._confirm_groups()

    def meet(self, members: Iterable[int]) -> None:
        """These are the members of the cluster now."""
        self.standing.meet(members)
        self._confirm_groups()

    @property
    def is_aside(self) -> bool:
        """Does it wait for word that its log has not gone back, in some groups?"""
        return bool(self._aside)

    @property
    def deadline(self) -> int:
        """When to tick at the latest."""
        if self._deadline is None:
            due = self.beat_at
            for group in self.groups.values():
                if group.deadline < due:
                    due = group.deadline
            self._deadline = due
        return self._deadline

    def step(self, now: int, wall: int, event: NodeEvent) -> Output:
        """Take one event at monotonic ms `now` and wall-clock ms `wall`."""
        self._begin_step()
        moment = self.moment
        moment.now, self._wall = now, wall
        if isinstance(event, Received):
            self._on_envelope(event.envelope)
        elif isinstance(event, Tick):
            self._on_tick()
        elif isinstance(event, Durable):
            self._on_durable(event)
        elif isinstance(event, Request):
            self._carry_out(self._live(event.group).step(event.event))
        elif isinstance(event, ProposeSlices):
            self._propose(event)
        elif isinstance(event, ForgottenSlices):
            self._forget(event)
        elif isinstance(event, Room):
            self._on_room(event)
        elif isinstance(event, SnapshotRead):
            self._on_snapshot_read(event)
        return self._end_step()

    def holds_lease(self, group: int, now: int) -> bool:
        """Whether an answer by lease, computed by now, may leave."""
        self.moment.now = now
        return self._live(group).holds_lease()

    def digest_at(self, group: int, index: int) -> int | None:
        """Return the digest of an op, None when it is not known here."""
        if group not in self.groups:
            return None
        log = self._live(group).log
        return log.digest_at(index) if log.base.index <= index <= log.last else None

    # What the fast path replaces.

    def view(self, number: int) -> View:
        """Return a group as it is, for those who only look."""
        group = self.groups[number]
        matches = {member: one.match for member, one in group.progress.items()}
        return View(
            group.role,
            group.leader,
            group.term,
            group.log.last,
            group.commit,
            matches if group.role == LEADER else {},
            group.leader_commit,
        )

    def views(self) -> dict[int, View]:
        """Return all groups as they are."""
        return {number: self.view(number) for number in self.groups}

    @property
    def rest(self) -> int | None:
        """Return a number that is the same while nobody lacks anything and nothing changes hands.

        None: something is under way, or may be.
        """
        return None

    def size_behind(self, number: int, member: int) -> int:
        """Return the bytes in memory that a follower of a group led here lacks."""
        group = self._live(number)
        progress = group.progress.get(member)
        if progress is None:
            return 0
        return group.log.size_behind(max(progress.match, group.log.base.index))

    def _live(self, number: int) -> Group:
        """Return a group as it is now."""
        self._stirred = True
        return self.groups[number]

    def _propose(self, event: ProposeSlices) -> None:
        ops = event.ops
        rows = zip(ops.groups.tolist(), ops.kind.tolist(), ops.size.tolist(), strict=True)
        for row, (group, kind, size) in enumerate(rows):
            proposal = Proposal(((kind, size, ops.body[row]),), event.causes[row])
            self._carry_out(self._live(group).step(proposal))

    def _forget(self, event: ForgottenSlices) -> None:
        for number, index in zip(event.groups.tolist(), event.index.tolist(), strict=True):
            group = self._live(number)
            self._carry_out(group.step(Forgotten(min(index, group.applicable))))

    def _on_slices(self, source: int, message: AppendSlices | AckSlices) -> None:
        for one in message.expanded():
            self._on_group_message(source, one)

    def _on_beat(self, source: int, beat: Beat) -> BeatReply:
        reply, actions = self._live(beat.group).on_beat(source, beat)
        self._carry_out(actions)
        return reply

    def _on_beat_reply(self, source: int, reply: BeatReply, message: BeatReplies) -> None:
        group = self._live(reply.group)
        if not _may_be(group, reply):
            return
        self._carry_out(group.on_beat_reply(source, reply, message.round, message.sent_at))

    def _tick_group(self, number: int) -> None:
        """Tick a group that is due; who stands aside waits."""
        if number in self._aside:
            self.groups[number].deadline = self.beat_at
        else:
            self._carry_out(self._live(number).step(Tick()))

    def _tick_groups(self, slack: int) -> None:
        """Tick the groups that are due so many ms from now: a tick may come early."""
        late = self.moment.now + slack
        for number, group in self.groups.items():
            if late >= group.deadline:
                self._tick_group(number)

    def _hurry(self) -> None:
        """Have every group ticked now."""
        for group in self.groups.values():
            group.deadline = min(group.deadline, self.moment.now)

    def _beats(self) -> dict[int, Sequence[Beat]]:
        """Return what to tell each peer of the groups that this node leads."""
        beats: dict[int, list[Beat]] = {peer: [] for peer in self.peers}
        for group in self.groups.values():
            if group.role == LEADER and group.progress:
                beat = Beat(group.group, group.term, group.commit)
                for member in group.progress:
                    beats[member].append(beat)
        return dict(beats)

    def leases(self, now: int) -> Leases:
        """Return the groups that may be read by lease, and from when each lease counts."""
        self.moment.now = now
        rows = [found for group in self.groups.values() if (found := lease_of(group))]
        groups, term_start, sent_at = np.array(rows, np.int64).reshape(-1, 3).T
        return Leases(groups, term_start, sent_at)

    def _on_room(self, event: Room) -> None:
        self.moment.room = event.room

    def _begin_step(self) -> None:
        self._records: list[Write | WriteSlices] = []  # in the order in which they were made
        self._actions: list[NodeAction] = []
        self._outgoing: dict[int, list[Outgoing]] = {}
        self._beat_soon = False
        self._deadline = None
        self._wall = 0

    def _end_step(self) -> Output:
        if self._beat_soon:
            self.beat_at = min(self.beat_at, self._round_at + ROUND_GAP_MS)
            if self.moment.now >= self.beat_at:
                self._begin_round()
        block = 0
        if self._records:
            block = self.moment.block
            self.moment.block += 1
            # Slices of steady groups are waited for in the columns.
            own = [record.group for record in self._records if not isinstance(record, WriteSlices)]
            if own:
                self._writers.setdefault(block, []).extend(own)
        envelopes = []
        if self._outgoing:
            cluster, member, boot, durable = self.cluster, self.member, self.boot, self.durable
            envelopes = [
                (to, Envelope(cluster, member, to, boot, durable, tuple(messages)))
                for to, messages in self._outgoing.items()
            ]
        return Output(block, self._records, envelopes, self._actions)

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action.to, action.message, action.after)
            elif isinstance(action, _WRITES):
                self._records.append(action)
            elif isinstance(action, BeatSoon):
                self._beat_soon = True
            else:
                self._actions.append(action)

    def _send(self, to: int, message: Outgoing, after: int = 0) -> None:
        """Send a message when block `after` is durable; with `held_max` waiting it is lost."""
        if after <= self.durable:
            self._outgoing.setdefault(to, []).append(message)
        elif self._held_count < self.settings.held_max:
            self._held.setdefault(after, []).append((to, message))
            self._held_count += 1

    def _on_durable(self, event: Durable) -> None:
        self.durable = event.block
        for block in sorted([b for b in self._held if b <= event.block]) if self._held else ():
            messages = self._held.pop(block)
            self._held_count -= len(messages)
            for to, message in messages:
                self._send(to, message)
        waiting: dict[int, None] = {}
        for block in sorted([b for b in self._writers if b <= event.block]):
            waiting.update(dict.fromkeys(self._writers.pop(block)))
        for number in waiting:
            self._carry_out(self._live(number).step(event))

    # Time.

    def _on_tick(self) -> None:
        now = self.moment.now
        if now >= self.beat_at:
            self._begin_round()
        fit = not self.clocks.is_off(now)
        if fit != self.moment.fit:
            self.moment.fit = fit
            self._hurry()
        self._tick_groups(TICK_SLACK_MS)

    def _find_peers(self) -> None:
        """See who is a member of any group; not where nothing but the ordinary has happened."""
        if not self._stirred:
            return
        self._stirred = False
        known = dict.fromkeys(self.seeds)
        for group in self.groups.values():
            known.update(dict.fromkeys(group.log.configuration.members))
        known.pop(self.member, None)
        self.peers = list(known)

    def _begin_round(self) -> None:
        """Send every peer one beat for all groups that I lead and it is a member of."""
        moment = self.moment
        self.beat_at = moment.now + self.settings.beat_ms
        self._round_at = moment.now
        self._find_peers()
        if self._aside:
            for peer in self.peers:
                self._send(peer, Hello(self.standing.block))
        for peer, own in self._beats().items():
            self._send(peer, Beats(moment.round, moment.now, self._wall, own))
        moment.round += 1

    # Messages.

    def _on_envelope(self, envelope: Envelope) -> None:
        """Take a peer's messages, unless the cluster, a life or a disk of it is not the present."""
        source = envelope.source
        node, incarnation = node_of(source), incarnation_of(source)
        boot = self._boots.get(source, 0)
        foreign = envelope.cluster != self.cluster or envelope.target != self.member
        if foreign or incarnation < self._incarnations.get(node, 0) or envelope.boot < boot:
            return
        self._incarnations[node] = incarnation
        if envelope.boot > boot:
            self._boots[source] = envelope.boot
            self._rounds[source] = 0
            if boot:
                for number, group in self.groups.items():
                    if group.role == LEADER and source in group.progress:
                        leading.on_start(self._live(number), source)
        self.standing.hear(source, envelope.boot, envelope.block)
        for message in envelope.messages:
            if isinstance(message, Beats):
                self._on_beats(source, message)
            elif isinstance(message, BeatReplies):
                self._on_beat_replies(source, message)
            elif isinstance(message, Hello):
                self._send(source, HelloReply(envelope.boot, self.standing.heard_of(source)))
            elif isinstance(message, HelloReply):
                self._on_hello_reply(envelope, message)
            elif isinstance(message, _SLICES):
                self._on_slices(source, message)
            else:
                self._on_group_message(source, message)

    def _on_group_message(self, source: int, message: GroupMessage) -> None:
        if message.group not in self.groups or message.group in self._aside:
            return
        group = self._live(message.group)
        if not isinstance(message, AppendReply) or _may_be(group, message):
            self._carry_out(group.receive(source, message))

    def _on_hello_reply(self, envelope: Envelope, message: HelloReply) -> None:
        peer = envelope.source
        if message.boot != self.boot:
            return  # one that comes late, when others have confirmed, is as true
        if self.standing.confirm(peer, message.block):
            self._confirm_groups()
        else:
            self._actions.append(GoneBack(peer, message.block, self.standing.block))

    def _confirm_groups(self) -> None:
        for group in list(self._aside.values()):
            if self.standing.is_confirmed(group.log.configuration):
                del self._aside[group.group]

    def _on_beats(self, source: int, message: Beats) -> None:
        """Answer a fresh beat; a late one says nothing about now."""
        if message.round > self._rounds.get(source, 0):
            self._rounds[source] = message.round
            self._answer_beats(source, message)
            self._maybe_beat_along()

    def _maybe_beat_along(self) -> None:
        """Begin a round that is due within half a beat, so that it goes with an answer.

        So nodes beat together, and wake each other once for both.
        """
        half = self.settings.beat_ms // 2
        if self.beat_at - self.moment.now < half:
            self._begin_round()
            self._tick_groups(half)

    def _answer_beats(self, source: int, message: Beats) -> None:
        replies: dict[int, list[BeatReply]] = {0: []}
        for beat in message.beats:
            group = self.groups.get(beat.group)
            if group is None or beat.group in self._aside:
                continue
            reply = self._on_beat(source, beat)
            replies.setdefault(self._waits_for(group), []).append(reply)
        for after, some in replies.items():
            answer = BeatReplies(message.round, message.sent_at, self._wall, tuple(some))
            self._send(source, answer, after)

    def _waits_for(self, group: Group) -> int:
        """Return the block that an answer about a group waits for, 0 when it may go."""
        return group.term_block if group.term_block > self.durable else 0

    def _on_beat_replies(self, source: int, message: BeatReplies) -> None:
        now = self.moment.now
        self.clocks.take(source, now, now - message.sent_at, message.wall - self._wall)
        self._take_beat_replies(source, message)

    def _take_beat_replies(self, source: int, message: BeatReplies) -> None:
        for reply in message.replies:
            if reply.group in self.groups:
                self._on_beat_reply(source, reply, message)

    def _on_snapshot_read(self, event: SnapshotRead) -> None:
        group = self._live(event.group)
        if (group.role, group.term) == (LEADER, event.term):
            message = Install(event.group, event.term, event.mark, event.body)
            self._send(event.to, message, group.term_block)
