"""RequestVote: who votes for whom, who campaigns and when.

Three rules keep a working leader in office, and each needs the others.  *Pre-vote*: ask before
raising the term, so a node that was cut off disturbs nobody when it is back.  *Sticky refusal*:
who has lately answered the leader's beat votes for nobody else; leases rest on it.
*Check-quorum* (`leading`): a leader that hears no majority steps down, else the other two would
keep an unreachable leader for ever.

A vote is a promise kept over restarts: it is written before it is sent (`GroupState.send`), and
a candidate counts its own only when it is durable.
"""

from __future__ import annotations

from meterd.core.raft import leading
from meterd.core.raft.state import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, GroupState
from meterd.protocol.raft_messages import (
    NOBODY,
    PreVote,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)


def wait_turn(group: GroupState) -> None:
    """Wait for a beat; without one the survivors campaign one after the other.

    The rank is turned by the group's number, so a dead node's groups spread over the others.
    """
    settings = group.settings
    candidates = [m for m in group.log.configuration.voters if m != group.leader]
    rank = len(candidates)
    if group.member in candidates:
        rank = (candidates.index(group.member) - group.group) % len(candidates)
    if not group.moment.room:
        rank += len(candidates)  # lead only if nobody else can
    jitter = int(group.random.random() * settings.jitter_ms)
    group.patience = settings.suspicion_ms + rank * settings.rank_ms + jitter
    if _is_learner(group):
        group.patience += settings.learner_ms
    if not group.others() and may_campaign(group):
        group.patience = 0  # there is nobody to hear
    group.election_at = group.moment.now + group.patience
    group.deadline = group.election_at


def follow(group: GroupState, term: int, leader: int) -> None:
    """Follow a leader, or nobody, in a term that is not over; wait for its beats."""
    group.become_follower(term, leader)
    wait_turn(group)


def hears_leader(group: GroupState) -> bool:
    """Whether a lease may hold that rests on this replica's answer to a beat.

    Only time counts here, not whom it follows now.  After a start it has forgotten whom it
    answered, so the start counts as such an answer.
    """
    settled = group.moment.now - group.settings.sticky_ms
    return group.role == LEADER or group.heard_at > settled or group.started_at > settled


def may_campaign(group: GroupState) -> bool:
    """Whether this replica may lead: it is counted, has all content, and knows what it has."""
    return group.is_voter and _is_whole(group)


def may_stand(group: GroupState) -> bool:
    """Whether this replica may ask for votes; besides those that may lead, a learner may.

    Its log may be the newest that is left, and then no voter is elected.  It wins by the votes of
    voters, commits what it has by counting them alone, and hands over at its next tick.
    """
    return may_campaign(group) or (_is_learner(group) and _is_whole(group))


def _is_learner(group: GroupState) -> bool:
    return group.member in group.log.configuration.learners


def _is_whole(group: GroupState) -> bool:
    return not group.log.holes and not group.uncertain and group.moment.fit


def is_up_to_date(group: GroupState, last_index: int, last_term: int) -> bool:
    """Whether a log that ends there has everything that this one may have helped to commit.

    The term goes first: a longer log of an older term may lack what a newer term committed.
    Damaged ops count by their identity: this replica has acked them.
    """
    return (last_term, last_index) >= (group.log.last_term, group.log.last)


def on_tick(group: GroupState) -> None:
    """Campaign when it is time; called when the deadline has passed and I do not lead."""
    now = group.moment.now
    if now < group.election_at:
        group.deadline = group.election_at  # a beat has come since
        return
    if group.role == CANDIDATE and not group.ballots.get(group.member):
        group.election_at = group.deadline = now + group.settings.election_ms  # slow disk
        return
    if not may_stand(group) or (hears_leader(group) and group.others()):
        if group.role != FOLLOWER:
            group.enter(FOLLOWER, NOBODY)
        wait_turn(group)
        return
    ask_for_votes(group)


def _try_again_later(group: GroupState, wait_ms: int) -> None:
    wait = wait_ms + int(group.random.random() * wait_ms)
    group.election_at = group.deadline = group.moment.now + wait


def ask_for_votes(group: GroupState) -> None:
    """The pre-vote: would I be elected?  Neither term nor vote changes."""
    group.enter(PRE_CANDIDATE, NOBODY)
    group.ballots[group.member] = True
    _try_again_later(group, group.settings.pre_vote_retry_ms)
    log = group.log
    for member in group.others():
        group.send(member, PreVote(group.group, group.term + 1, log.last, log.last_term))
    if _has_majority(group):
        campaign(group, transfer=False)


def campaign(group: GroupState, *, transfer: bool) -> None:
    """Begin a term and vote for myself in it.

    The requests wait for that vote, and so for all ops before it: what a request says of the
    log's end is durable, too.
    """
    group.begin_term(group.term + 1, group.member)
    group.enter(CANDIDATE, NOBODY)
    _try_again_later(group, group.settings.election_ms)
    log = group.log
    for member in group.others():
        group.send(member, Vote(group.group, group.term, log.last, log.last_term, transfer))


def on_pre_vote(group: GroupState, sender: int, message: PreVote) -> None:
    granted = (
        message.term > group.term
        and not hears_leader(group)
        and not group.uncertain
        and is_up_to_date(group, message.last_index, message.last_term)
    )
    group.send(sender, PreVoteReply(group.group, message.term, granted, group.term))


def on_vote(group: GroupState, sender: int, message: Vote) -> None:
    """Grant or refuse a vote; a refusal for stickiness does not even take up the term."""
    sticky = hears_leader(group) and not message.transfer
    granted = False
    if message.term >= group.term and not sticky:
        if message.term > group.term:
            follow(group, message.term, NOBODY)
        granted = (
            group.vote in (NOBODY, sender)
            and not group.uncertain
            and is_up_to_date(group, message.last_index, message.last_term)
        )
    if granted and group.vote == NOBODY:
        group.vote = sender
        group.write_term()
        if group.role == PRE_CANDIDATE:
            group.enter(FOLLOWER, NOBODY)
        wait_turn(group)
    group.send(sender, VoteReply(group.group, message.term, granted, group.term))


def on_pre_vote_reply(group: GroupState, sender: int, message: PreVoteReply) -> None:
    if message.term > group.term:
        follow(group, message.term, NOBODY)
    elif group.role == PRE_CANDIDATE and message.asked == group.term + 1 and message.granted:
        group.ballots[sender] = True
        if _has_majority(group) and may_stand(group) and not hears_leader(group):
            campaign(group, transfer=False)


def on_vote_reply(group: GroupState, sender: int, message: VoteReply) -> None:
    if message.term > group.term:
        follow(group, message.term, NOBODY)
    elif group.role == CANDIDATE and message.asked == group.term and message.granted:
        group.ballots[sender] = True
        maybe_win(group)


def on_timeout_now(group: GroupState, sender: int, message: TimeoutNow) -> None:
    """The leader wants me to lead: skip the pre-vote, which all who hear it would refuse.

    A request that is late (the term or the log has moved on) must do nothing: its sender may
    have begun to serve by lease again.
    """
    meant = (message.term, message.last_index) == (group.term, group.log.last)
    if meant and group.leader == sender and may_campaign(group):
        campaign(group, transfer=True)


def maybe_win(group: GroupState) -> None:
    """Lead, if a majority of voters, each counted once, has voted for me."""
    if group.role != CANDIDATE or not _has_majority(group):
        return
    if may_stand(group):
        leading.become_leader(group)
    else:
        follow(group, group.term, NOBODY)  # damaged since it asked


def on_durable(group: GroupState) -> None:
    """My own vote counts from the time when a crash cannot undo it."""
    if group.role == CANDIDATE and group.durable_block >= group.term_block:
        group.ballots[group.member] = True
        maybe_win(group)


def _has_majority(group: GroupState) -> bool:
    configuration = group.log.configuration
    votes = sum(group.ballots.get(member, False) for member in configuration.voters)
    return votes >= configuration.quorum
