"""The clock of steady groups (`core/raft/pulse.py`): beats, their answers, leases and ticks.

All groups of a node at once, several times a second, although nothing happens: done by numpy each
would be some dozen calls.  Of messages row k of every column is about one group; each once.

State as in `kernels/steady.py`, and by group number: times int64[8, groups], marks bool[2, groups]
and rounds int64[3, groups, 12] of each group's members.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from meterd.core.kernels.steady import (
    ACCEPTED,
    COMMIT,
    DURABLE,
    LAST,
    LEADER,
    LEADS,
    LONE,
    MATCH,
    MEMBER,
    MEMBERS_MAX,
    PARKED,
    QUORUM,
    SENT_AT,
    STREAMS,
    TERM,
    VOTES,
)

Array = Any

TIMES = 8
(
    DUE,
    ELECTION_AT,
    PATIENCE,
    HEARD_AT,
    LEADER_COMMIT,
    LED_SINCE,
    TERM_START,
    LEASE_FROM,
) = range(TIMES)
READS, SETTLED = range(2)
ROUND, ROUND_SENT_AT, MEMBER_SENT_AT = range(3)

NEVER = 1 << 60


@njit(cache=True, _nrt=False)
def each_once(groups: Array, count: int) -> bool:
    """Whether groups (int64[k]) rise, and are all below count; a peer may say anything."""
    before = -1
    for k in range(len(groups)):
        if groups[k] <= before or groups[k] >= count:
            return False
        before = groups[k]
    return True


@njit(cache=True, _nrt=False)
def earliest(times: Array) -> int:
    """Return when the first group is due."""
    found = NEVER
    for g in range(times.shape[1]):
        found = min(found, times[DUE, g])
    return found


@njit(cache=True, _nrt=False)
def all_have_all(columns: Array, flags: Array, numbers: Array) -> bool:
    """Whether every group is steady and everybody has all that is in those that are led here."""
    for g in range(flags.shape[1]):
        if not flags[PARKED, g]:
            return False
        if not flags[LEADS, g]:
            continue
        last = columns[LAST, g]
        if last == 0 or columns[COMMIT, g] != last:
            return False
        for member in range(1, MEMBERS_MAX):
            if numbers[MEMBER, g, member] and numbers[MATCH, g, member] != last:
                return False
    return True


@njit(cache=True, _nrt=False)
def beats_for(peer: int, columns: Array, flags: Array, numbers: Array, out: Array) -> int:
    """Write to out (int64[3, groups]) the beats of what is led here with this peer."""
    count = 0
    for g in range(flags.shape[1]):
        if not (flags[PARKED, g] and flags[LEADS, g]) or flags[LONE, g]:
            continue
        for member in range(1, MEMBERS_MAX):
            if numbers[MEMBER, g, member] == peer:
                out[0, count], out[1, count] = g, columns[TERM, g]
                out[2, count] = columns[COMMIT, g]
                count += 1
                break
    return count


@njit(cache=True, _nrt=False)
def take_beats(
    source: int,
    now: int,
    columns: Array,
    flags: Array,
    times: Array,
    beats: Array,
    answers: Array,
    there: Array,
    committed: Array,
) -> int:
    """Take a leader's beats about groups that follow it.

    beats      int64[3, k]: group, term, commit index
    answers    int64[k, 7]: as `BeatReply`; there (bool[k]): which are given
    committed  int64[2, k]: groups, and up to where they are committed now
    Returns how many there are of committed.
    """
    raised = 0
    for k in range(beats.shape[1]):
        g, told = beats[0, k], beats[2, k]
        there[k] = (
            flags[PARKED, g]
            and not flags[LEADS, g]
            and columns[LEADER, g] == source
            and columns[TERM, g] == beats[1, k]
        )
        if not there[k]:
            continue
        last = columns[LAST, g]
        commit = min(told, last)
        if commit > columns[COMMIT, g]:
            columns[COMMIT, g] = commit
            committed[0, raised], committed[1, raised] = g, commit
            raised += 1
        times[HEARD_AT, g] = now
        times[ELECTION_AT, g] = times[DUE, g] = now + times[PATIENCE, g]
        times[LEADER_COMMIT, g] = max(told, times[LEADER_COMMIT, g])
        answers[k, 0], answers[k, 1], answers[k, 2] = g, beats[1, k], last
        answers[k, 3] = min(last, columns[DURABLE, g])
        answers[k, 4], answers[k, 5], answers[k, 6] = 0, 0, 1
    return raised


@njit(cache=True, _nrt=False)
def take_answers(
    source: int,
    said: Any,
    columns: Array,
    flags: Array,
    numbers: Array,
    masks: Array,
    times: Array,
    marks: Array,
    rounds: Array,
    answers: Array,
    left: Array,
) -> int:
    """Take a follower's answers about groups that are led here.

    said     round, when its beats were sent, now, and after how long something is sent again
    answers  int64[7, k]: the fields of `BeatReply`
    left     int64[k]: rows that are not ordinary; returns how many there are
    """
    round_, sent_at, now, retransmit = said
    more = 0
    for k in range(answers.shape[1]):
        g, accepted = answers[0, k], answers[2, k]
        place = -1
        for member in range(MEMBERS_MAX):
            if numbers[MEMBER, g, member] == source:
                place = member
                break
        good = (
            place >= 0
            and flags[PARKED, g]
            and flags[LEADS, g]
            and columns[TERM, g] == answers[1, k]
            and not marks[READS, g]
            and answers[4, k] == 0
            and answers[5, k] == 0
            and answers[6, k] == 1
            and masks[STREAMS, g, place]
            and answers[3, k] <= numbers[MATCH, g, place]
        )
        if good and accepted < columns[LAST, g]:
            sent = max(columns[SENT_AT, g], rounds[MEMBER_SENT_AT, g, place])
            good = now - sent < retransmit
        if not good:
            left[more] = k
            more += 1
            continue
        numbers[ACCEPTED, g, place] = accepted
        if round_ > rounds[ROUND, g, place]:
            rounds[ROUND, g, place] = round_
            rounds[ROUND_SENT_AT, g, place] = max(sent_at, rounds[ROUND_SENT_AT, g, place])
    return more


@njit(cache=True, _nrt=False)
def _quorum_sent_at(g: int, now: int, columns: Array, masks: Array, rounds: Array) -> int:
    """Return the latest time since which a majority of voters is known to have followed.

    A parked leader is a voter itself, and follows now.
    """
    found = -NEVER
    for member in range(MEMBERS_MAX):
        time = now if member == 0 else rounds[ROUND_SENT_AT, g, member]
        if (member and not masks[VOTES, g, member]) or time <= found:
            continue
        count = 1 if now >= time else 0
        for other in range(1, MEMBERS_MAX):
            if masks[VOTES, g, other] and rounds[ROUND_SENT_AT, g, other] >= time:
                count += 1
        if count >= columns[QUORUM, g]:
            found = time
    return found


@njit(cache=True, _nrt=False)
def leases(
    now: int,
    forever: int,
    columns: Array,
    flags: Array,
    masks: Array,
    times: Array,
    rounds: Array,
    out: Array,
) -> int:
    """Write to out (int64[3, groups]) what may be read by: group, first index of the term, since.

    Returns how many there are.
    """
    count = 0
    for g in range(flags.shape[1]):
        if not (flags[PARKED, g] and flags[LEADS, g]) or columns[COMMIT, g] < times[LEASE_FROM, g]:
            continue
        out[0, count], out[1, count] = g, times[TERM_START, g]
        if columns[QUORUM, g] == 1:
            out[2, count] = forever
        else:
            out[2, count] = _quorum_sent_at(g, now, columns, masks, rounds)
        count += 1
    return count


@njit(cache=True, _nrt=False)
def tick(
    said: Any,
    fit: bool,
    columns: Array,
    flags: Array,
    masks: Array,
    times: Array,
    marks: Array,
    rounds: Array,
    left: Array,
) -> int:
    """Move on the clocks of groups to which nothing happens.

    said  now, how much earlier a tick may come, a beat's length, how long a quorum, and how long a
          follower may be silent
    left  int64[groups]: the groups that need a tick; returns how many there are
    """
    now, slack, beat, limit, silent = said
    more = 0
    for g in range(flags.shape[1]):
        if now + slack < times[DUE, g]:
            continue
        if flags[PARKED, g] and not flags[LEADS, g] and now < times[ELECTION_AT, g]:
            times[DUE, g] = times[ELECTION_AT, g]
            continue
        leads = flags[PARKED, g] and flags[LEADS, g] and marks[SETTLED, g] and fit
        if leads and now - times[LED_SINCE, g] >= limit:
            leads = _quorum_sent_at(g, now, columns, masks, rounds) >= now - limit
        if leads and now - times[LED_SINCE, g] >= silent:
            for member in range(MEMBERS_MAX):
                if masks[STREAMS, g, member]:
                    leads = leads and rounds[ROUND_SENT_AT, g, member] > now - silent
        if not leads:
            left[more] = g
            more += 1
        elif flags[LONE, g]:
            times[DUE, g] = NEVER
        else:
            times[DUE, g] = now + beat
    return more
