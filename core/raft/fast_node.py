"""A node with the fast path: steady groups are columns (`steady`), all others scalar as ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from meterd.core.raft.events import Durable, ForgottenSlices
from meterd.core.raft.group import Group
from meterd.core.raft.node import Node, Output, ProposeSlices, Room
from meterd.core.raft.pulse import Columns, Pulse
from meterd.core.raft.reading import Leases, lease_of
from meterd.core.raft.state import LEADER
from meterd.core.raft.steady import ChainMany, Steady, View
from meterd.protocol.raft_messages import Beat, BeatReplies, BeatReply, Beats
from meterd.protocol.raft_rows import Rows, table_of
from meterd.protocol.raft_slices import AckSlices, AppendSlices


class FastNode(Node):
    """Does what Node does, message for message."""

    def __init__(self, *, chain_many: ChainMany, **fields: Any) -> None:
        self._touched: dict[int, None] = {}  # groups that may be parked after this step
        super().__init__(**fields)
        self._steady = Steady(self.groups, chain_many, self._await_block)
        self._pulse = Pulse(self.groups, self._steady, self.settings)
        self._steady.watch(self._pulse.park, self._pulse.unpark)

    def _await_block(self, block: int, group: int) -> None:
        self._writers.setdefault(block, []).append(group)

    def view(self, number: int) -> View:
        """Return a group as it is, for those who only look."""
        if not self._steady.parked[number]:
            return super().view(number)
        return self._pulse.views(np.array([number]))[0]

    def views(self) -> dict[int, View]:
        parked = np.flatnonzero(self._steady.parked)
        found = dict(zip(parked.tolist(), self._pulse.views(parked), strict=True))
        return {n: found[n] if n in found else super(FastNode, self).view(n) for n in self.groups}

    @property
    def rest(self) -> int | None:
        """Return how often groups have come or gone, where all are parked and have all."""
        return self._steady.moves if self._pulse.all_have_all() else None

    def _live(self, number: int) -> Group:
        self._steady.unpark(number)
        self._touched[number] = None
        return super()._live(number)

    def _end_step(self) -> Output:
        for number in self._touched:
            group = self.groups[number]
            self._pulse.due[number] = group.deadline
            if number not in self._aside:
                self._steady.park(group, self.durable)
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
            record, committed, left = self._steady.accept(source, message, self.moment.block)
            if record is not None:
                self._records.append(record)
        if committed is not None:
            self._actions.append(committed)
        for row in left.tolist():
            self._on_group_message(source, message.message(row))

    # What time does to parked groups, and who is due.

    @property
    def deadline(self) -> int:
        """When to tick at the latest."""
        if self._deadline is None:
            self._deadline = min(self.beat_at, self._pulse.deadline)
        return self._deadline

    def _hurry(self) -> None:
        self._pulse.hurry(self.moment.now)

    def _tick_groups(self, slack: int) -> None:
        moment = self.moment
        for number in self._pulse.tick(moment.now, slack, moment.fit):
            self._tick_group(number)
            self._touched[number] = None

    def _beats(self) -> dict[int, Sequence[Beat]]:
        live: dict[int, list[Beat]] = {}
        for number in np.flatnonzero(~self._steady.parked).tolist():
            group = self.groups.get(number)
            if group is not None and group.role == LEADER:
                for member in group.progress:
                    beat = Beat(number, group.term, group.commit)
                    live.setdefault(member, []).append(beat)
        beats: dict[int, Sequence[Beat]] = {}
        for peer in self.peers:
            own = self._pulse.beats(peer)
            if peer in live:
                both = np.concatenate([own.table, table_of(Beat, live[peer])])
                own = Rows(Beat, both[np.argsort(both[:, 0])])
            beats[peer] = own
        return beats

    def _answer_beats(self, source: int, message: Beats) -> None:
        beats = _columns_of(Beat, message.beats)
        if self._aside or not self._pulse.each_once(beats[0]):
            super()._answer_beats(source, message)
            return
        answers, there, committed = self._pulse.take_beats(source, beats, self.moment.now)
        if committed is not None:
            self._actions.append(committed)
        later: dict[int, list[BeatReply]] = {}
        for row in np.flatnonzero(~there).tolist():
            beat = Beat(*beats[:, row].tolist())
            if beat.group not in self.groups:
                continue
            reply = self._on_beat(source, beat)
            after = self._waits_for(self.groups[beat.group])
            if after:
                later.setdefault(after, []).append(reply)
            else:
                answers[row], there[row] = reply, True
        now = Rows(BeatReply, answers if there.all() else answers[there])
        self._send(source, BeatReplies(message.round, message.sent_at, self._wall, now))
        for after, some in later.items():
            answer = BeatReplies(message.round, message.sent_at, self._wall, tuple(some))
            self._send(source, answer, after)

    def _take_beat_replies(self, source: int, message: BeatReplies) -> None:
        answers = _columns_of(BeatReply, message.replies)
        if not self._pulse.each_once(answers[0]):
            super()._take_beat_replies(source, message)
            return
        now = self.moment.now
        left = self._pulse.take_answers(source, message.round, message.sent_at, answers, now)
        for row in left.tolist():
            reply = BeatReply(*answers[:, row].tolist())
            if reply.group in self.groups:
                self._on_beat_reply(source, reply, message)

    def leases(self, now: int) -> Leases:
        self.moment.now = now
        parked = self._pulse.leases(now)
        live = np.flatnonzero(~self._steady.parked).tolist()
        found = [lease_of(self.groups[number]) for number in live if number in self.groups]
        rows = np.array([one for one in found if one is not None], np.int64).reshape(-1, 3).T
        columns = [np.concatenate(both) for both in zip(parked, rows, strict=True)]
        return Leases(*columns)

    def _on_durable(self, event: Durable) -> None:
        super()._on_durable(event)
        committed, acks = self._steady.durable(event.block)
        if committed is not None:
            self._actions.append(committed)
        for leader, ack in acks:
            self._send(leader, ack)


def _columns_of(kind: type[Any], messages: Sequence[Any]) -> Columns:
    """Return the fields of messages of one type as rows, int64[fields, k]."""
    return np.array(table_of(kind, messages).T, order="C")
