"""Timers and limits of consensus, each with its reason.  Times are ms, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """What may be tuned.  `check` says which combinations are unsafe."""

    beat_ms: int = 150
    # No fresh beat for so long: the leader is suspected.  Busy machines fire timers 120 ms late.
    suspicion_ms: int = 900
    # Voters wait their turn to campaign, so that votes are not split (p99 1.3 s, random 2.5 s).
    rank_ms: int = 250
    jitter_ms: int = 60
    # A learner waits so much longer: by then voters have elected one of them, if they can.
    learner_ms: int = 3000
    # After a refused pre-vote: so long, and up to twice that.
    pre_vote_retry_ms: int = 120
    # A vote waits for a disk at the other end, a pre-vote does not.
    election_ms: int = 600
    # After it has answered a beat a node votes for nobody; after its start neither.
    sticky_ms: int = 750
    # A leader that so long has no majority of answers steps down.
    check_quorum_ms: int = 1500
    # From the time a beat was *sent*; shorter than sticky_ms by more than clocks may drift.
    lease_ms: int = 600
    # A follower that answers no beat for so long is sent nothing more until it does.
    silent_ms: int = 2000
    transfer_ms: int = 900
    # What was sent and is not there after so long is sent again.
    retransmit_ms: int = 300
    snapshot_retry_ms: int = 3000
    repair_retry_ms: int = 200
    # Further off than this from the median of its peers a node neither leads nor expires.
    clock_off_ms: int = 500

    # One append; more go in the next one.
    append_ops_max: int = 256
    append_bytes_max: int = 2 << 20
    # Per follower, sent and not yet durable there.
    flights_max: int = 64
    flight_bytes_max: int = 64 << 20
    # Per group, appended and not committed; beyond it clients are told to come back later.
    uncommitted_ops_max: int = 65536
    uncommitted_bytes_max: int = 64 << 20
    # Reads of one group that wait for a round.
    reads_max: int = 1024
    # Damaged ops asked for at once.
    repair_ops_max: int = 64
    # A learner may be promoted when so few ops behind.
    promotion_lag_max: int = 256
    # Messages that wait for a block; a disk that slow is as good as dead, so they are lost.
    held_max: int = 16384

    def check(self) -> list[str]:
        """Return what is wrong with these settings, in words; empty when nothing is."""
        wrong = []
        if self.lease_ms * 1.05 >= self.sticky_ms:
            wrong.append("lease_ms must be less than sticky_ms by more than 5 % (clock drift)")
        if self.sticky_ms >= self.suspicion_ms:
            wrong.append("sticky_ms must be less than suspicion_ms, or no election succeeds")
        if self.beat_ms * 3 > self.lease_ms:
            wrong.append("lease_ms must be at least three beats")
        if self.check_quorum_ms < self.suspicion_ms:
            wrong.append("check_quorum_ms must not be less than suspicion_ms")
        return wrong
