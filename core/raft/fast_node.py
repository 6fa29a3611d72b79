"""A node with the fast path: steady groups are columns (`steady`), all others scalar as ever."""

from __future__ import annotations

from typing import Any

from meterd.core.raft import leading
from meterd.core.raft.events import Commit, Durable, ForgottenSlices
from meterd.core.raft.group import Group
from meterd.core.raft.node import Node, Output, ProposeSlices, Room
from meterd.core.raft.state import FOLLOWER, LEADER
from meterd.core.raft.steady import ChainMany, Steady, View
from meterd.protocol.raft_messages import Beat, BeatReplies, BeatReply
from meterd.protocol.raft_slices import AckSlices, AppendSlices


class FastNode(Node):
    """Does what Node does, message for message."""

    def __init__(self, *, chain_many: ChainMany, **fields: Any) -> None:
        self._touched: dict[int, None] = {}  # groups that may be parked after this step
        super().__init__(**fields)
        self._steady = Steady(self.groups, chain_many, self._await_block)

    def _await_block(self, block: int, group: int) -> None:
        self._writers.setdefault(block, []).append(group)

    def view(self, number: int) -> View:
        """Return a group as it is, for those who only look."""
        parked = self._steady.parked[number]
        return self._steady.view(number) if parked else super().view(number)

    def _live(self, number: int) -> Group:
        self._steady.unpark(number)
        self._touched[number] = None
        return super()._live(number)

    def _end_step(self) -> Output:
        for number in self._touched:
            if number not in self._aside:
                self._steady.park(self.groups[number], self.durable)
        self._touched.clear()
        return super()._end_step()

    def _on_room(self, event: Room) -> None:
        for number in self.groups:
            self._steady.unpark(number)
        super()._on_room(event)

    def _propose(self, event: ProposeSlices) -> None:
        moment = self.moment
        fast = None
        if moment.fit:
            fast = self._steady.propose(event.ops, event.causes, moment.block, moment.now)
        left = event
        if fast is not None:
            self._records.append(fast.record)
            self._actions.append(fast.accepted)
            for member, message in fast.sends:
                self._send(member, message)
            if not len(fast.left):
                return
            causes = [event.causes[row] for row in fast.left.tolist()]
            left = ProposeSlices(event.ops.take(fast.left), causes)
        super()._propose(left)

    def _forget(self, event: ForgottenSlices) -> None:
        groups, index = event
        parked = self._steady.parked[groups]
        self._steady.forget(groups[parked], index[parked])
        super()._forget(ForgottenSlices(groups[~parked], index[~parked]))

    def _on_slices(self, source: int, message: AppendSlices | AckSlices) -> None:
        groups = message.groups if isinstance(message, AckSlices) else message.ops.groups
        if not self._steady.knows(groups):
            super()._on_slices(source, message)
            return
        if isinstance(message, AckSlices):
            committed, left = self._steady.ack(source, message)
        else:
            record, committed, ack, left = self._steady.accept(source, message, self.moment.block)
            if record is not None:
                self._records.append(record)
            if ack is not None:
                self._send(source, ack)
        if committed is not None:
            self._actions.append(committed)
        for row in left.tolist():
            self._on_group_message(source, message.message(row))

    # Beats of parked groups: what is ordinary about them changes neither log nor role.

    def commit_of(self, group: Group) -> int:
        number = group.group
        return self._steady.commit_of(number) if self._steady.parked[number] else group.commit

    def _on_beat(self, source: int, beat: Beat) -> BeatReply:
        reply, commit = self._steady.beat(source, beat)
        if reply is None:
            return super()._on_beat(source, beat)
        group = self.groups[beat.group]
        group.heard_at = self.moment.now
        group.election_at = self.moment.now + group.patience
        group.leader_commit = max(beat.commit, group.leader_commit)
        if commit:
            self._actions.append(Commit(beat.group, commit))
        return reply

    def _on_beat_reply(self, source: int, reply: BeatReply, message: BeatReplies) -> None:
        group = self.groups[reply.group]
        if group.reads or not self._steady.beat_reply(source, reply, self.moment.now):
            super()._on_beat_reply(source, reply, message)
            return
        progress = group.progress[source]
        if message.round > progress.round:
            progress.round = message.round
            progress.round_sent_at = max(progress.round_sent_at, message.sent_at)

    def _tick_group(self, group: Group) -> None:
        """Nothing is to do for who follows and has heard a beat, or leads and all is well."""
        if not self._steady.parked[group.group]:
            super()._tick_group(group)
        elif group.role == FOLLOWER and self.moment.now < group.election_at:
            group.deadline = group.election_at
        elif group.role == LEADER and self.moment.fit and leading.is_calm(group):
            group.deadline = leading.next_tick(group)
        else:
            super()._tick_group(group)

    def _on_durable(self, event: Durable) -> None:
        super()._on_durable(event)
        committed, acks = self._steady.durable(event.block)
        if committed is not None:
            self._actions.append(committed)
        for leader, ack in acks:
            self._send(leader, ack)
