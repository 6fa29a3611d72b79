"""Bugs put into the engine on purpose: each breaks one rule that is easy to get wrong.

A simulator that does not notice them proves nothing.  `python -m tests.sim.mutants` reports how
many seeds each one takes.  The product has no flags for this: functions are replaced from here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from meterd.core.raft import (
    elections,
    following,
    leading,
    membership,
    reading,
    repair,
    snapshots,
    transfer,
    vouching,
)
from meterd.core.raft.events import WriteTerm
from meterd.core.raft.log import Log
from meterd.core.raft.progress import Progress
from meterd.core.raft.standing import Standing
from meterd.core.raft.state import FOLLOWER, LEADER, GroupState
from meterd.protocol.raft_messages import NOBODY
from tests.sim import clients, machine
from tests.sim.bugs import Bugs, Patch
from tests.sim.disk import DiskGroup
from tests.sim.runner import run_seed
from tests.sim.scenario import scenarios

BUGS = Bugs(run_seed)


# Terms and votes.


@BUGS.add
def term_and_vote_are_not_written() -> list[Patch]:
    def write_term(group: GroupState) -> None:
        group.term_block = group.durable_block

    return [(GroupState, "write_term", write_term)]


@BUGS.add
def vote_leaves_before_it_is_durable() -> list[Patch]:
    def write_term(group: GroupState) -> None:
        group.actions.append(WriteTerm(group.group, group.term, group.vote, group.uncertain))

    return [(GroupState, "write_term", write_term)]


@BUGS.add
def votes_twice_in_a_term() -> list[Patch]:
    original = elections.on_vote

    def on_vote(group: GroupState, sender: int, message: Any) -> None:
        if message.term == group.term and group.role == FOLLOWER:
            group.vote = NOBODY
        original(group, sender, message)

    return [(elections, "on_vote", on_vote)]


@BUGS.add
def votes_are_counted_by_message() -> list[Patch]:
    original = elections.on_vote_reply

    def on_vote_reply(group: GroupState, sender: int, message: Any) -> None:
        missing = [m for m in group.others() if not group.ballots.get(m)]
        original(group, missing[0] if missing else sender, message)

    return [(elections, "on_vote_reply", on_vote_reply)]


@BUGS.add
def vote_replies_do_not_name_the_term() -> list[Patch]:
    original = elections.on_vote_reply

    def on_vote_reply(group: GroupState, sender: int, message: Any) -> None:
        original(group, sender, message._replace(asked=group.term))

    return [(elections, "on_vote_reply", on_vote_reply)]


@BUGS.add
def votes_by_index_without_term() -> list[Patch]:
    def is_up_to_date(group: GroupState, last_index: int, last_term: int) -> bool:
        return last_index >= group.log.last

    return [(elections, "is_up_to_date", is_up_to_date)]


@BUGS.add
def no_sticky_refusal() -> list[Patch]:
    return [(elections, "hears_leader", lambda group: group.role == LEADER)]


@BUGS.add
def started_node_votes_at_once() -> list[Patch]:
    def hears_leader(group: GroupState) -> bool:
        settled = group.moment.now - group.settings.sticky_ms
        return group.role == LEADER or group.heard_at > settled

    return [(elections, "hears_leader", hears_leader)]


@BUGS.add
def stickiness_ends_with_the_term() -> list[Patch]:
    original = GroupState.become_follower

    def become_follower(group: GroupState, term: int, leader: int) -> None:
        if term > group.term:
            group.heard_at = -(1 << 60)
        original(group, term, leader)

    return [(GroupState, "become_follower", become_follower)]


# Appends and acks.


@BUGS.add
def acks_before_it_is_durable() -> list[Patch]:
    match = property(lambda group: min(group.verified, group.log.whole_to))
    return [(GroupState, "match", match)]


@BUGS.add
def acks_its_own_last_index() -> list[Patch]:
    match = property(lambda group: min(group.durable, group.log.whole_to))
    return [(GroupState, "match", match)]


@BUGS.add
def verified_outlives_the_term() -> list[Patch]:
    original = GroupState.become_follower

    def become_follower(group: GroupState, term: int, leader: int) -> None:
        verified = group.verified
        original(group, term, leader)
        group.verified = verified

    return [(GroupState, "become_follower", become_follower)]


@BUGS.add
def leader_counts_itself_before_its_disk() -> list[Patch]:
    original = leading.maybe_commit

    def maybe_commit(group: GroupState) -> None:
        durable, group.durable = group.durable, group.log.last
        original(group)
        group.durable = durable

    return [(leading, "maybe_commit", maybe_commit)]


@BUGS.add
def follower_commits_up_to_its_own_last() -> list[Patch]:
    original = following.on_beat

    def on_beat(group: GroupState, sender: int, beat: Any) -> Any:
        answer = original(group, sender, beat)
        if beat.term == group.term:
            group.advance_commit(min(beat.commit, group.log.last))
        return answer

    return [(following, "on_beat", on_beat)]


@BUGS.add
def truncates_at_every_append() -> list[Patch]:
    original = following._take

    def take(group: GroupState, ops: Any, prev: int) -> int:
        if ops and group.commit <= prev < group.log.last:
            group.write_ops(ops)
            return int(ops[-1].index)
        return original(group, ops, prev)

    return [(following, "_take", take)]


@BUGS.add
def old_durability_counts_for_new_ops() -> list[Patch]:
    def truncate(group: GroupState, last: int) -> None:
        group.log.truncate(last)
        group.verified = min(group.verified, last)

    return [(GroupState, "truncate", truncate)]


@BUGS.add
def replies_of_old_terms_count() -> list[Patch]:
    original = leading.on_append_reply

    def on_append_reply(group: GroupState, sender: int, message: Any) -> None:
        original(group, sender, message._replace(term=group.term))

    return [(leading, "on_append_reply", on_append_reply)]


@BUGS.add
def commits_old_terms_by_count() -> list[Patch]:
    original = leading.maybe_commit

    def maybe_commit(group: GroupState) -> None:
        original(group)
        configuration = group.log.configuration
        matches = [
            group.durable if m == group.member else group.progress[m].match
            for m in configuration.voters
        ]
        index = sorted(matches, reverse=True)[configuration.quorum - 1]
        if index > group.commit:
            group.advance_commit(index)

    return [(leading, "maybe_commit", maybe_commit)]


@BUGS.add
def learners_are_counted() -> list[Patch]:
    original = leading.maybe_commit

    def maybe_commit(group: GroupState) -> None:
        original(group)
        configuration = group.log.configuration
        matches = [
            group.durable if m == group.member else group.progress[m].match
            for m in configuration.members
        ]
        index = sorted(matches, reverse=True)[configuration.quorum - 1]
        if index > group.commit and group.log.term_at(index) == group.term:
            group.advance_commit(index)

    return [(leading, "maybe_commit", maybe_commit)]


# Reads, leases, transfers.


@BUGS.add
def reads_without_confirmation() -> list[Patch]:
    def holds_lease(group: GroupState) -> bool:
        return group.role == LEADER

    return [(reading, "holds_lease", holds_lease)]


@BUGS.add
def lease_from_arrival() -> list[Patch]:
    original = leading.on_beat_reply

    def on_beat_reply(
        group: GroupState, sender: int, message: Any, round_: int, sent_at: int
    ) -> None:
        original(group, sender, message, round_, group.moment.now)

    return [(leading, "on_beat_reply", on_beat_reply)]


@BUGS.add
def read_round_is_not_echoed() -> list[Patch]:
    original = leading.on_beat_reply

    def on_beat_reply(
        group: GroupState, sender: int, message: Any, round_: int, sent_at: int
    ) -> None:
        original(group, sender, message, group.moment.round - 1, sent_at)

    return [(leading, "on_beat_reply", on_beat_reply)]


@BUGS.add
def lease_is_not_looked_at_again() -> list[Patch]:
    return [(clients, "may_answer", lambda machine, group: True)]


@BUGS.add
def new_leader_reads_at_once() -> list[Patch]:
    original = leading.become_leader

    def become_leader(group: GroupState) -> None:
        original(group)
        group.term_start = group.lease_from = 0

    return [(leading, "become_leader", become_leader)]


@BUGS.add
def lease_goes_on_during_a_transfer() -> list[Patch]:
    original, original_read = reading.holds_lease, reading.on_read

    def without_transfer(function: Any, group: GroupState, *rest: Any) -> Any:
        kept, group.transfer = group.transfer, None
        try:
            return function(group, *rest)
        finally:
            group.transfer = kept

    return [
        (reading, "holds_lease", lambda g: without_transfer(original, g)),
        (reading, "on_read", lambda g, e: without_transfer(original_read, g, e)),
    ]


@BUGS.add
def lease_is_back_after_an_aborted_transfer() -> list[Patch]:
    original = transfer.maybe_abort

    def maybe_abort(group: GroupState) -> bool:
        lease_from = group.lease_from
        aborted = original(group)
        group.lease_from = lease_from
        return aborted

    return [(transfer, "maybe_abort", maybe_abort)]


@BUGS.add
def stale_timeout_now_is_obeyed() -> list[Patch]:
    def on_timeout_now(group: GroupState, sender: int, message: Any) -> None:
        if elections.may_campaign(group):
            elections.campaign(group, transfer=True)

    return [(elections, "on_timeout_now", on_timeout_now)]


# Damage, snapshots, membership.


@BUGS.add
def log_is_cut_at_damage() -> list[Patch]:
    original = DiskGroup.recovered

    def recovered(image: DiskGroup) -> Any:
        if image.damaged:
            del image.ops[min(image.damaged) - image.base.index - 1 :]
            image.damaged = set()
        return original(image)

    return [(DiskGroup, "recovered", recovered)]


@BUGS.add
def lost_tail_votes() -> list[Patch]:
    original = DiskGroup.recovered

    def recovered(image: DiskGroup) -> Any:
        return original(image)._replace(uncertain=False)

    return [(DiskGroup, "recovered", recovered)]


def trusted_when(holds: Callable[[GroupState], bool]) -> list[Patch]:
    """A replica is certain as soon as something holds that its leader has told it."""
    on_append, on_beat = following.on_append, following.on_beat

    def look(group: GroupState) -> None:
        if group.uncertain and holds(group):
            group.uncertain = False
            group.write_term()

    def take_append(group: GroupState, sender: int, message: Any) -> None:
        on_append(group, sender, message)
        look(group)

    def take_beat(group: GroupState, sender: int, beat: Any) -> Any:
        reply = on_beat(group, sender, beat)
        look(group)
        return reply

    return [(following, "on_append", take_append), (following, "on_beat", take_beat)]


@BUGS.add
def lost_tail_is_trusted_at_once() -> list[Patch]:
    return trusted_when(lambda group: group.match >= group.commit > 0)


@BUGS.add
def lost_tail_is_trusted_by_a_late_append() -> list[Patch]:
    return trusted_when(lambda group: is_of_its_term(group, group.leader_commit))


@BUGS.add
def lost_tail_is_trusted_by_its_own_commit() -> list[Patch]:
    return trusted_when(lambda group: is_of_its_term(group, group.commit))


def is_of_its_term(group: GroupState, commit: int) -> bool:
    has_it = group.match >= commit > group.log.base.index
    return has_it and group.log.term_at(commit) == group.term


@BUGS.add
def lost_tail_is_counted() -> list[Patch]:
    return [(Progress, "counted", property(lambda progress: progress.match))]


@BUGS.add
def lost_tail_confirms_reads() -> list[Patch]:
    return [
        (Progress, "counted_round", property(lambda progress: progress.round)),
        (Progress, "counted_sent_at", property(lambda progress: progress.round_sent_at)),
    ]


@BUGS.add
def lost_tail_is_vouched_for_by_an_old_op() -> list[Patch]:
    original = vouching.on_reply

    def on_reply(group: GroupState, sender: int, message: Any) -> None:
        original(group, sender, message)
        if sender in group.progress:
            group.progress[sender].known_at = 0

    return [(vouching, "on_reply", on_reply)]


@BUGS.add
def vouch_for_an_earlier_start_counts() -> list[Patch]:
    original = vouching.on_vouch

    def on_vouch(group: GroupState, sender: int, message: Any) -> None:
        original(group, sender, message._replace(since=group.uncertain_since))

    return [(vouching, "on_vouch", on_vouch)]


@BUGS.add
def damaged_replica_leads() -> list[Patch]:
    def may_campaign(group: GroupState) -> bool:
        return group.is_voter and not group.uncertain and group.moment.fit

    return [(elections, "may_campaign", may_campaign)]


@BUGS.add
def learners_do_not_campaign() -> list[Patch]:
    return [(elections, "may_stand", lambda group: elections.may_campaign(group))]


@BUGS.add
def damaged_ops_are_acked() -> list[Patch]:
    match = property(lambda group: min(group.verified, group.durable))
    return [(GroupState, "match", match)]


@BUGS.add
def repaired_ops_are_acked_at_once() -> list[Patch]:
    original = repair.take

    def take(group: GroupState, ops: Any) -> None:
        original(group, ops)
        while group.repairs:
            for op in group.repairs.popleft()[1]:
                group.log.fill(op)
        group.release()

    return [(repair, "take", take)]


@BUGS.add
def snapshot_is_acked_before_the_switch() -> list[Patch]:
    original = snapshots.switch

    def switch(group: GroupState, mark: Any) -> None:
        original(group, mark)
        group.durable = group.log.last

    return [(snapshots, "switch", switch)]


@BUGS.add
def snapshot_keeps_a_conflicting_log() -> list[Patch]:
    original = snapshots.on_stored

    def on_stored(group: GroupState, event: Any) -> None:
        if group.log.last > event.mark.index:
            event = event._replace(
                mark=event.mark._replace(
                    term=group.log.term_at(max(event.mark.index, group.log.base.index))
                )
            )
        original(group, event)

    return [(snapshots, "on_stored", on_stored)]


@BUGS.add
def wiped_node_keeps_its_name() -> list[Patch]:
    original = machine.Machine.wipe

    def wipe(one: machine.Machine, groups: Any) -> None:
        original(one, groups)
        one.incarnation -= 1

    def confirm(standing: Standing, peer: int, heard: int) -> bool:
        standing._confirmed_by[peer] = None
        return True

    return [(machine.Machine, "wipe", wipe), (Standing, "confirm", confirm)]


@BUGS.add
def changes_while_one_is_pending() -> list[Patch]:
    original = membership.reason_against

    def reason_against(group: GroupState, new: Any) -> str:
        reason = original(group, new)
        return "" if reason == membership.CHANGE_PENDING else reason

    return [(membership, "reason_against", reason_against)]


@BUGS.add
def changes_before_the_term_is_open() -> list[Patch]:
    return [(membership, "has_opened_term", lambda group: True)]


@BUGS.add
def changes_two_voters_at_once() -> list[Patch]:
    return [(membership, "is_single_change", lambda old, new: True)]


@BUGS.add
def configurations_outlive_truncation() -> list[Patch]:
    original = Log.truncate

    def truncate(log: Log, last: int) -> None:
        kept = log._configurations
        original(log, last)
        log._configurations = kept

    return [(Log, "truncate", truncate)]


# Getting on.


@BUGS.add
def limits_are_not_kept() -> list[Patch]:
    original = Progress.take_off

    def take_off(progress: Progress, last_index: int, size: int, now: int) -> None:
        original(progress, last_index, 0, now)
        progress.flights.clear()

    return [(Progress, "take_off", take_off)]


@BUGS.add
def transfer_asks_for_pre_votes() -> list[Patch]:
    original = elections.campaign

    def campaign(group: GroupState, *, transfer: bool) -> None:
        if transfer:
            elections.ask_for_votes(group)
        else:
            original(group, transfer=False)

    return [(elections, "campaign", campaign)]


@BUGS.add
def no_check_quorum() -> list[Patch]:
    return [(leading, "lacks_quorum", lambda group: False)]


# Random schedules seldom meet these; the tests named do by construction, and so do scenarios.
DIRECTED = {
    "test_raft_mutants": (
        "votes_are_counted_by_message",
        "vote_replies_do_not_name_the_term",
        "votes_by_index_without_term",
        "no_sticky_refusal",
        "started_node_votes_at_once",
        "stickiness_ends_with_the_term",
        "verified_outlives_the_term",
        "acks_its_own_last_index",
        "replies_of_old_terms_count",
        "lease_from_arrival",
        "read_round_is_not_echoed",
        "lease_goes_on_during_a_transfer",
        "lease_is_back_after_an_aborted_transfer",
        "new_leader_reads_at_once",
        "stale_timeout_now_is_obeyed",
        "lost_tail_is_trusted_at_once",
        "lost_tail_is_trusted_by_its_own_commit",
        "snapshot_keeps_a_conflicting_log",
        "changes_two_voters_at_once",
        "limits_are_not_kept",
        "configurations_outlive_truncation",
        "lost_tail_votes",
    ),
}
SHARE_OF_DIRECTED = 4


def main() -> int:
    """Report seeds needed for every mutant, or for those named."""
    schedules = {name: [test for test, bugs in DIRECTED.items() if name in bugs] for name in BUGS}
    for scenario in scenarios():
        for name in scenario.notices:
            schedules[name].append(scenario.path.name)
    return BUGS.report(sys.argv[1:], 1000, schedules, SHARE_OF_DIRECTED)


if __name__ == "__main__":
    sys.exit(main())
