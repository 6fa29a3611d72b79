"""Who has lost the end of its log is not counted before nothing that it forgot can matter any more.

A replica is *uncertain* when its last block cannot be read.  It may have acked ops that it does not
have, and voted, in terms that it does not know of.  So it votes for nobody, and says in all that it
tells a leader since which start it is uncertain.  It gets ops like everybody, but its leader counts
it for nothing: commit, reads, leases, check-quorum, changes of members.

The leader *vouches* for it when an op that it appended after it heard that is committed without it,
and is durable there.  The majority that has acked this op did so in the leader's term and after the
start, and meets any majority that made a leader with a forgotten vote.  Who is in both is not the
uncertain one; after a vote in a later term it would not have acked, and after the ack it votes only
for who has that op.  But whoever the forgotten vote was for campaigned before the op was there.
So nobody leads, or will, a later term with a forgotten vote; and what was acked in others is in
the log of this leader, not behind the op.

A leader appends a no-op where nothing else comes, so a group without clients gets there, too.
"""

from __future__ import annotations

from meterd.core.raft import following, leading
from meterd.core.raft.state import LEADER, GroupState
from meterd.protocol.raft_messages import NOOP, TO_VOUCH, AppendReply, BeatReply, Vouch


def on_reply(group: GroupState, sender: int, message: AppendReply | BeatReply) -> None:
    """Note what a follower says of itself, before anything that it says is counted."""
    progress = group.progress.get(sender)
    if group.role != LEADER or message.term != group.term or progress is None:
        return
    since = message.uncertain_since
    if since != progress.uncertain_since:
        progress.uncertain_since = since
        progress.known_at = group.log.last
        if not since:
            leading.maybe_commit(group)  # what it has counts from now on
    if not since:
        return
    if min(message.match, group.commit) > progress.known_at:
        group.send(sender, Vouch(group.group, group.term, since))
    elif group.log.last == progress.known_at and group.transfer is None:
        leading.append_ops(group, ((NOOP, leading.NOOP_SIZE, TO_VOUCH),))


def on_vouch(group: GroupState, sender: int, message: Vouch) -> None:
    """Be counted again; the leader hears of it when a crash cannot undo it.

    The leader has seen in this term, and since this start, that all it speaks of is durable here.
    """
    meant = (message.term, message.since) == (group.term, group.uncertain_since)
    if group.uncertain and meant:
        group.uncertain = False
        group.write_term()
        following.reply(group, sender, 0)
