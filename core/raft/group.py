"""One replica of one group: the door to it, `step` and `receive`.

Both take one thing that happened and return what must be done about it, in order.  The same
state, moment, randomness and event give the same actions.
"""

from __future__ import annotations

from meterd.core.raft import (
    elections,
    following,
    leading,
    leavers,
    membership,
    reading,
    repair,
    snapshots,
    transfer,
    vouching,
)
from meterd.core.raft.events import (
    Action,
    Compacted,
    Damaged,
    Durable,
    Event,
    Forgotten,
    MetLeader,
    OpsGone,
    OpsRead,
    Proposal,
    ProposeChange,
    Read,
    SnapshotStored,
    Tick,
    TransferLeadership,
)
from meterd.core.raft.state import LEADER, GroupState
from meterd.protocol.raft_messages import (
    NOBODY,
    Append,
    AppendReply,
    Beat,
    BeatReply,
    GroupMessage,
    Install,
    PreVote,
    PreVoteReply,
    Repair,
    RepairReply,
    TimeoutNow,
    Vote,
    VoteReply,
    Vouch,
)


class Group(GroupState):
    """A Raft replica.  `start` once, then only `step`, `receive`, `on_beat`, `on_beat_reply`."""

    def start(self) -> None:
        """Wait for a leader, as after any start."""
        elections.wait_turn(self)

    def step(self, event: Event) -> list[Action]:
        """Take a request or something that happened on this node."""
        if isinstance(event, Tick):
            self._on_tick()
        elif isinstance(event, Durable):
            self._on_durable(event.block)
        elif isinstance(event, Proposal):
            leading.on_proposal(self, event)
        elif isinstance(event, Read):
            reading.on_read(self, event)
        elif isinstance(event, ProposeChange):
            membership.on_change(self, event)
        elif isinstance(event, TransferLeadership):
            transfer.on_request(self, event)
        elif isinstance(event, SnapshotStored):
            snapshots.on_stored(self, event)
        elif isinstance(event, Compacted):
            snapshots.on_compacted(self, event)
        elif isinstance(event, Forgotten):
            snapshots.on_forgotten(self, event)
        elif isinstance(event, MetLeader):
            leavers.on_met_leader(self, event)
        elif isinstance(event, OpsRead):
            if event.term == repair.FOR_REPAIR:
                repair.on_ops_read(self, event)
            else:
                leading.on_ops_read(self, event)
                leavers.on_ops_read(self, event)
        elif isinstance(event, OpsGone):
            if event.term == repair.FOR_REPAIR:
                repair.on_ops_gone(self, event)
            else:
                leading.on_ops_gone(self, event)
        elif isinstance(event, Damaged):
            repair.on_damaged(self, event)
        return self._taken()

    def receive(self, sender: int, message: GroupMessage) -> list[Action]:
        """Take a peer's message about this group."""
        if isinstance(message, Append):
            following.on_append(self, sender, message)
        elif isinstance(message, AppendReply):
            if message.term > self.term:
                elections.follow(self, message.term, NOBODY)
            vouching.on_reply(self, sender, message)
            leading.on_append_reply(self, sender, message)
            leavers.on_append_reply(self, sender, message)
            transfer.maybe_send(self)
        elif isinstance(message, PreVote):
            elections.on_pre_vote(self, sender, message)
            leavers.on_pre_vote(self, sender, message)
        elif isinstance(message, PreVoteReply):
            elections.on_pre_vote_reply(self, sender, message)
        elif isinstance(message, Vote):
            elections.on_vote(self, sender, message)
        elif isinstance(message, VoteReply):
            elections.on_vote_reply(self, sender, message)
        elif isinstance(message, TimeoutNow):
            elections.on_timeout_now(self, sender, message)
        elif isinstance(message, Vouch):
            vouching.on_vouch(self, sender, message)
        elif isinstance(message, Install):
            snapshots.on_install(self, sender, message)
        elif isinstance(message, Repair):
            repair.on_repair(self, sender, message)
        elif isinstance(message, RepairReply):
            repair.on_repair_reply(self, message)
        return self._taken()

    def on_beat(self, sender: int, beat: Beat) -> tuple[BeatReply, list[Action]]:
        """Take a fresh beat of the leader; return the answer, too."""
        answer = following.on_beat(self, sender, beat)
        return answer, self._taken()

    def on_beat_reply(
        self, sender: int, reply: BeatReply, round_: int, sent_at: int
    ) -> list[Action]:
        """Take the answer to a beat of mine."""
        if reply.term > self.term:
            elections.follow(self, reply.term, NOBODY)
        vouching.on_reply(self, sender, reply)
        leading.on_beat_reply(self, sender, reply, round_, sent_at)
        transfer.maybe_send(self)
        return self._taken()

    def holds_lease(self) -> bool:
        """Whether a read by lease that has just been computed may be answered."""
        return reading.holds_lease(self)

    def _taken(self) -> list[Action]:
        actions, self.actions = self.actions, []
        return actions

    def _on_tick(self) -> None:
        if self.log.holes and self.moment.now >= self.repair_at:
            repair.ask(self)
        if self.role == LEADER:
            self._on_leader_tick()
        else:
            elections.on_tick(self)
        if self.log.holes:
            self.deadline = min(self.deadline, self.repair_at)

    def _on_leader_tick(self) -> None:
        """Step down, hand over, or carry on."""
        unfit = not elections.may_campaign(self)
        aborted = transfer.maybe_abort(self)
        if leading.lacks_quorum(self) or (unfit and aborted):
            elections.follow(self, self.term, NOBODY)
            return
        if (unfit or not self.moment.room) and self.transfer is None and not aborted:
            target = transfer.best_target(self)
            if target != NOBODY:
                transfer.begin(self, target)
            elif unfit:
                elections.follow(self, self.term, NOBODY)
                return
        leading.on_tick(self)

    def _on_durable(self, block: int) -> None:
        self.take_durable(block)
        if self.repairs:
            repair.on_durable(self)
        if self.role == LEADER:
            leading.maybe_commit(self)
            transfer.maybe_send(self)
        else:
            elections.on_durable(self)
            following.on_durable(self)
