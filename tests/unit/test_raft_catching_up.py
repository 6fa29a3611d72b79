"""A follower whose leader has the older ops in no file any more, and what it may not cost."""

from __future__ import annotations

import pytest

from meterd.core.raft.events import FollowerBehind, Forgotten, OpsGone, OpsRead, ReadOps
from meterd.core.raft.following import TwoHistories, on_append
from meterd.core.raft.progress import PROBE
from meterd.core.raft.repair import FOR_REPAIR
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.raft_messages import UNKNOWN, Append, AppendReply, Op
from tests.support.raft_lab import Lab

COMMITTED = 20
ROUNDS = 80


class Files:
    """The log files of the leader, which begin with an op."""

    def __init__(self, lab: Lab, leader: int, oldest: int) -> None:
        self.lab, self.leader, self.oldest = lab, leader, oldest
        self.ops: dict[int, Op] = {op.index: op for op in lab.groups[leader].log.ops}
        self.looked_at = len(lab.actions[leader])
        self.behind: list[FollowerBehind] = []

    def turn(self) -> None:
        """Read what the engine wants."""
        actions = self.lab.actions[self.leader][self.looked_at :]
        self.looked_at += len(actions)
        self.behind += [a for a in actions if isinstance(a, FollowerBehind)]
        for wanted in [a for a in actions if isinstance(a, ReadOps)]:
            if wanted.first < self.oldest:
                self.lab.step(self.leader, OpsGone(wanted.to, wanted.term, wanted.first))
                continue
            one_before = self.ops[wanted.first - 1]
            before = (one_before.term, one_before.digest)
            if wanted.first == self.oldest:
                # The receiver fills in its own digest, if the ops follow it (`wire_check`).
                before = (UNKNOWN, self._checked(wanted.to, one_before))
            ops = tuple([self.ops[i] for i in range(wanted.first, wanted.last + 1)])
            self.lab.step(self.leader, OpsRead(wanted.to, wanted.term, *before, ops))

    def serve(self) -> None:
        """Let 2 catch up from them, for as long as it could take."""
        for _ in range(ROUNDS):
            self.lab.wait(400)
            self.lab.beat(1, 2, 3)
            self.turn()
            self.lab.flow()

    def _checked(self, member: int, op: Op) -> int:
        log = self.lab.groups[member].log
        agrees = op.index <= log.last and log.digest_at(op.index) == op.digest
        return op.digest if agrees else 0


def with_a_tail(tail: int) -> Lab:
    """2 has `tail` ops that nobody else got; 1 leads and has forgotten what it committed."""
    lab = Lab((1, 2, 3))
    lab.elect(2)
    lab.flow()
    lab.propose(2, COMMITTED - 1)
    lab.flow()
    lab.beat(2, 1, 3)
    lab.propose(2, tail)
    lab.drop()
    lab.elect(1, 3)
    lab.drop()
    lab.propose(1, 60)
    for _ in range(3):
        lab.wait(400)
        lab.beat(1, 3)
        lab.flow(1, 3)
    lab.drop()
    assert lab.commit(2) == COMMITTED and lab.groups[2].log.last == COMMITTED + tail
    assert lab.commit(1) == lab.groups[1].log.last == COMMITTED + 61
    return lab


@pytest.mark.parametrize("forgets", [False, True], ids=["knows what is committed", "has started"])
@pytest.mark.parametrize("tail", range(1, 10))
def test_files_that_begin_where_the_logs_part_are_enough(tail: int, forgets: bool) -> None:
    lab = with_a_tail(tail)
    leader = lab.groups[1]
    files = Files(lab, 1, COMMITTED + 1)
    lab.step(1, Forgotten(leader.commit))
    if forgets:
        lab.crash(2)
        lab.restart(2)
    leader.progress[2].start_anew(leader.log.last + 1)
    files.serve()
    assert files.behind == []
    assert lab.groups[2].log.last == leader.log.last == leader.progress[2].match


def test_who_is_further_behind_than_files_reach_is_told() -> None:
    lab = with_a_tail(3)
    leader = lab.groups[1]
    files = Files(lab, 1, COMMITTED + 30)
    lab.step(1, Forgotten(leader.commit))
    leader.progress[2].start_anew(leader.log.last + 1)
    files.serve()
    assert {(one.to, one.first) for one in files.behind} == {(2, COMMITTED + 4)}
    assert lab.groups[2].log.last == COMMITTED + 3


def test_a_hole_that_no_file_can_fill_is_told_by_who_leads() -> None:
    lab = with_a_tail(1)
    gone = OpsGone(2, FOR_REPAIR, 5)
    assert FollowerBehind(0, 2, 5) in lab.step(1, gone)
    assert not lab.step(3, gone)  # another may have it


def test_what_is_not_read_was_not_sent() -> None:
    """A follower whose answers take long must not be taken for silent for ever."""
    lab = with_a_tail(1)
    leader = lab.groups[1]
    lab.step(1, Forgotten(leader.commit))
    progress = leader.progress[2]
    progress.probe_from(COMMITTED + 1)
    lab.wait(400)
    progress.sent_at = lab.now  # it was read and sent, and is lost
    assert progress.state == PROBE
    asked = len([a for a in lab.actions[1] if isinstance(a, ReadOps)])
    sent_at = lab.now
    for _ in range(3):
        lab.wait(400)
        reply = AppendReply(0, leader.term - 1, 0, 0, 0, 0, 0, 0, 0, True)
        leader.receive(2, reply)  # nothing new
        lab.beat(1, 3)
    assert progress.sent_at == sent_at
    lab.beat(1, 2)
    assert len([a for a in lab.actions[1] if isinstance(a, ReadOps)]) == asked + 1


def test_an_append_that_says_something_else_about_a_snapshot_stops_the_node() -> None:
    lab = with_a_tail(1)
    leader, follower = lab.groups[1], lab.groups[3]
    ops = tuple(leader.log.ops[COMMITTED - 2 : COMMITTED + 2])
    lab.step(3, Forgotten(COMMITTED + 1))
    broken = (ops[0], ops[1], ops[2]._replace(digest=7), ops[3])
    prev = ops[0].index - 1
    message = Append(0, leader.term, prev, UNKNOWN, 0, ops, leader.commit)
    on_append(follower, 1, message)
    with pytest.raises(InvariantViolation, match="two histories"):
        on_append(follower, 1, message._replace(ops=broken))


def test_an_op_with_other_content_under_the_same_index_and_term_is_not_acknowledged() -> None:
    """Directories restored to different moments may hold such; then no majority has the op."""
    lab = with_a_tail(1)
    leader, follower = lab.groups[1], lab.groups[3]
    last = follower.log.ops[COMMITTED - 1]
    prev = follower.log.ops[COMMITTED - 2]
    same = Append(0, leader.term, prev.index, prev.term, prev.digest, (last,), COMMITTED)
    assert (last.index, last.term) <= (follower.log.last, follower.log.last_term)
    on_append(follower, 1, same)
    with pytest.raises(TwoHistories):
        on_append(follower, 1, same._replace(ops=(last._replace(digest=7),)))
