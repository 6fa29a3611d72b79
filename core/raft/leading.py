"""AppendEntries as the leader sees it: propose, send, count, commit, step down.

A leader sends an op before it is durable here and counts itself for it afterwards, like anybody
else.  It commits by counting only ops of its own term: an older one may be on a majority and
still be replaced by a leader that never saw it (Figure 8); it is committed by what follows it.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from meterd.core.raft import reading
from meterd.core.raft.events import (
    NO_ROOM,
    NOT_LEADER,
    OVERLOADED,
    TRANSFERRING,
    UNFIT,
    Accepted,
    FollowerBehind,
    OpsGone,
    OpsRead,
    Proposal,
    ReadOps,
    SendSnapshot,
)
from meterd.core.raft.progress import ONE_BY_ONE, PROBE, REPLICATE, SNAPSHOT, Progress
from meterd.core.raft.state import LEADER, GroupState
from meterd.protocol.raft_messages import (
    CONFIG,
    NOOP,
    OPENS_TERM,
    UNKNOWN,
    Append,
    AppendReply,
    BeatReply,
    Op,
)

NOOP_SIZE = 64
NEVER = 1 << 60


def become_leader(group: GroupState) -> None:
    """Open the term with an op of its own: until it commits, nobody knows what is committed."""
    group.enter(LEADER, group.member)
    group.led_since = group.moment.now
    group.progress = {}
    keep_progress(group)
    group.uncommitted_bytes = group.log.size_behind(group.commit)
    start = append_ops(group, ((NOOP, NOOP_SIZE, OPENS_TERM),))
    group.term_start = group.lease_from = start


def keep_progress(group: GroupState) -> None:
    """Know all members of the newest configuration, and nobody else."""
    members = [m for m in group.log.configuration.members if m != group.member]
    fresh = group.log.last + 1
    group.progress = {m: group.progress.get(m) or Progress(fresh) for m in members}
    group.deadline = next_tick(group)


def next_tick(group: GroupState) -> int:
    """Return when a leader must look at its followers; never, when there are none.

    Nothing can happen by the clock to who is alone: a node has hundreds of such groups.
    """
    return group.moment.now + group.settings.beat_ms if group.progress else NEVER


def append_ops(group: GroupState, items: tuple[tuple[int, int, Any], ...]) -> int:
    """Append ops of this term and send them; return the index of the first."""
    log, term = group.log, group.term
    index, digest = log.last, log.digest_at(log.last)
    ops = []
    for kind, size, body in items:
        index += 1
        digest = group.chain(digest, term, index, kind, body)
        ops.append(Op(index, term, digest, kind, size, body))
        group.uncommitted_bytes += size
    group.write_ops(ops)
    send_to_all(group)
    return ops[0].index


def on_proposal(group: GroupState, event: Proposal) -> None:
    """Append what clients want, or say why not."""
    reason = _reason_against(group)
    if reason:
        group.refuse(event.cause, reason)
        return
    first = append_ops(group, event.items)
    count = len(event.items)
    group.actions.append(Accepted(group.group, event.cause, first, count, group.term))


def _reason_against(group: GroupState) -> str:
    settings = group.settings
    if group.role != LEADER:
        return NOT_LEADER
    if group.transfer is not None:
        return TRANSFERRING
    if not group.moment.room:
        return NO_ROOM
    if not group.moment.fit:
        return UNFIT
    if (
        group.log.last - group.commit >= settings.uncommitted_ops_max
        or group.uncommitted_bytes >= settings.uncommitted_bytes_max
    ):
        return OVERLOADED
    return ""


def fits_reserve(op: Op) -> bool:
    """Whether an op is written on a full disk, too: the few that keep a group led."""
    return op.kind in (NOOP, CONFIG)


def send_to_all(group: GroupState) -> None:
    """Send whatever may be sent to everybody."""
    for member, progress in group.progress.items():
        send_appends(group, member, progress)


def send_appends(group: GroupState, member: int, progress: Progress) -> None:
    """Send a follower the ops it lacks, as far as its state and its limits allow."""
    log, settings, now = group.log, group.settings, group.moment.now
    if progress.state == SNAPSHOT:
        return
    if progress.next <= log.floor:
        progress.state = SNAPSHOT
        progress.sent_at = now
        group.actions.append(SendSnapshot(group.group, member, group.term))
        return
    if progress.next <= log.base.index and progress.state == REPLICATE:
        progress.probe_from(progress.next)  # from disk: one message at a time
    if progress.state == PROBE:
        # Who has answered no beat since the last probe is not there; his next answer brings one.
        if now - progress.sent_at < settings.retransmit_ms or progress.is_silent:
            return
        progress.sent_at = now
        if progress.next <= log.base.index:
            group.actions.append(_read_ops(group, member, progress))
        else:
            _send_append(group, member, progress)
        return
    while (
        progress.next <= log.whole_to
        and len(progress.flights) < settings.flights_max
        and progress.flight_bytes < settings.flight_bytes_max
    ):
        ops = _send_append(group, member, progress)
        progress.take_off(ops[-1].index, sum([op.size for op in ops]), now)


def _send_append(group: GroupState, member: int, progress: Progress) -> tuple[Op, ...]:
    log, settings = group.log, group.settings
    prev = progress.next - 1
    ops: tuple[Op, ...] = ()
    if prev < log.last:
        ops = log.read(progress.next, settings.append_ops_max, settings.append_bytes_max)
    if not progress.room:
        ops = tuple(takewhile(fits_reserve, ops))
    before = (prev, log.term_at(prev), log.digest_at(prev))
    group.send(member, Append(group.group, group.term, *before, ops, group.commit))
    return ops


def _read_ops(group: GroupState, member: int, progress: Progress) -> ReadOps:
    first, last = progress.next, group.log.base.index
    last = min(last, first + group.settings.append_ops_max - 1)
    return ReadOps(group.group, member, group.term, first, last)


def on_ops_read(group: GroupState, event: OpsRead) -> None:
    """Send what was read from disk, if the follower still waits for it."""
    progress = group.progress.get(event.to)
    first = event.ops[0].index
    waits = progress is not None and (progress.state, progress.next) == (PROBE, first)
    if progress is None or not waits or (group.role, group.term) != (LEADER, event.term):
        return
    ops = event.ops if progress.room else tuple(takewhile(fits_reserve, event.ops))
    before = (first - 1, event.prev_term, event.prev_digest)
    if ops or event.prev_term != UNKNOWN:  # else nothing says whether the logs agree there
        group.send(event.to, Append(group.group, group.term, *before, ops, group.commit))
    progress.sent_at = group.moment.now


def on_ops_gone(group: GroupState, event: OpsGone) -> None:
    """Go back less far, if that may do; else only a copy of a peer helps."""
    progress = group.progress.get(event.to)
    if (group.role, group.term) != (LEADER, event.term):
        return
    if progress is not None:
        if (progress.state, progress.next) != (PROBE, event.first):
            return
        if event.first < progress.nearest:
            progress.back = ONE_BY_ONE
            progress.probe_from(progress.nearest)
            send_appends(group, event.to, progress)
            return
        # It is asked again where its log ends: it will have more when it has the copy.
        progress.next = group.log.last + 1
        progress.back = progress.nearest = 0
    group.actions.append(FollowerBehind(group.group, event.to, event.first))


def on_append_reply(group: GroupState, sender: int, message: AppendReply) -> None:
    """Learn what a follower has.  A reply of another term says nothing about this one."""
    progress = group.progress.get(sender)
    if group.role != LEADER or message.term != group.term or progress is None:
        return
    if message.conflict:
        _on_refusal(group, progress, message)
    else:
        _on_progress(group, progress, message)
    send_appends(group, sender, progress)


def on_beat_reply(
    group: GroupState, sender: int, message: BeatReply, round_: int, sent_at: int
) -> None:
    """A follower was following when it answered: leases, read rounds, check-quorum."""
    progress = group.progress.get(sender)
    if group.role != LEADER or message.term != group.term or progress is None:
        return
    if round_ > progress.round:
        progress.round = round_
        progress.round_sent_at = max(progress.round_sent_at, sent_at)
    _on_progress(group, progress, message)
    late = group.moment.now - progress.sent_at >= group.settings.retransmit_ms
    if progress.state == REPLICATE and message.accepted < progress.next - 1 and late:
        # Something was lost on the way, or the follower has started anew.
        progress.probe_from(max(message.accepted, progress.match) + 1)
    send_appends(group, sender, progress)
    if group.reads:
        reading.serve_waiting(group)


def on_start(group: GroupState, member: int) -> None:
    """A follower's node has started anew."""
    progress = group.progress.get(member)
    if group.role == LEADER and progress is not None:
        progress.start_anew(group.log.last + 1)


def _on_refusal(group: GroupState, progress: Progress, message: AppendReply) -> None:
    """The logs do not agree at `asked`: try where they may.  Late refusals say nothing new."""
    waited_for = message.asked == progress.next - 1
    if progress.state == SNAPSHOT or (progress.state == PROBE and not waited_for):
        return
    if progress.state == REPLICATE and message.asked <= progress.match:
        return
    log = group.log
    known = min(message.accepted, message.asked - 1)  # there they agree
    # It has an op of that term before `conflict`; mine of a newer term there cannot be the same.
    agreed = log.last_of_term(message.conflict_term, message.conflict - 1)
    agreed = max(known, min(agreed, message.asked - 1))
    progress.match = min(progress.match, agreed)  # only who has lost its tail has less
    progress.nearest = agreed + 1
    if message.asked < log.base.index and agreed > log.floor:
        # Terms there are known to the disk only.  What a dead leader has alone is mostly an op or
        # two, and files may reach back no further than that: go back by 1, 2, 4, up to as much as
        # one message sends again.
        step = progress.step_back(group.settings.append_ops_max)
        agreed = max(known, log.floor, min(agreed, message.asked - step))
    progress.probe_from(agreed + 1)


def _on_progress(group: GroupState, progress: Progress, message: AppendReply | BeatReply) -> None:
    progress.accepted = message.accepted
    progress.room = message.room
    progress.damaged = message.need_from > 0
    if message.match > progress.match:
        progress.land(message.match)
        maybe_commit(group)
    if message.need_from and message.need_from <= group.log.floor:
        # Damaged where nobody's log reaches back to: only a snapshot helps.
        if progress.state != SNAPSHOT:
            progress.probe_from(message.need_from)
    elif progress.state == SNAPSHOT and message.accepted >= group.log.floor:
        progress.probe_from(message.accepted + 1)
    elif progress.state == REPLICATE and not message.room:
        progress.probe_from(max(message.accepted, progress.match) + 1)
        progress.sent_at = group.moment.now
    elif (
        progress.state == PROBE
        and isinstance(message, AppendReply)
        # Less is the answer to something older: ops from there on may be in no file any more.
        and message.accepted >= max(1, progress.next - 1)
    ):
        if message.room:
            progress.replicate()
        else:
            progress.next = max(message.accepted, progress.match) + 1


def maybe_commit(group: GroupState) -> None:
    """Commit what a majority of voters has made durable, if it is of this term."""
    configuration = group.log.configuration
    matches = []
    for member in configuration.voters:
        if member == group.member:
            matches.append(min(group.durable, group.log.whole_to))
        else:
            matches.append(group.progress[member].counted)
    matches.sort(reverse=True)
    index = matches[configuration.quorum - 1]
    if index > group.commit and group.log.term_at(index) == group.term:
        for at in range(group.commit + 1, index + 1):
            group.uncommitted_bytes -= group.log.op(at).size
        group.advance_commit(index)


def lacks_quorum(group: GroupState) -> bool:
    """Whether too few voters have answered a beat sent in the last while."""
    now, limit = group.moment.now, group.settings.check_quorum_ms
    if now - group.led_since < limit:
        return False
    return reading.quorum_sent_at(group) < now - limit


def on_tick(group: GroupState) -> None:
    """Send again what seems lost; expect nothing more of who has long been silent.

    A group one of whose followers has too much under way is none for the fast path.
    """
    now, settings = group.moment.now, group.settings
    group.deadline = next_tick(group)
    for member, progress in group.progress.items():
        if progress.state == SNAPSHOT and now - progress.sent_at >= settings.snapshot_retry_ms:
            progress.probe_from(group.log.floor)
        heard_at = max(progress.round_sent_at, group.led_since)
        if progress.state == REPLICATE and now - heard_at >= settings.silent_ms:
            progress.probe_from(max(progress.accepted, progress.match) + 1)
            progress.sent_at = now  # nothing before it answers
        if progress.state == PROBE:
            send_appends(group, member, progress)
