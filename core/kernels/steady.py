"""The fast path of the consensus engine: one op of each of many groups (`core/raft/steady.py`).

A step there does a few things for a few rows; done by numpy it would be some dozen calls, which
cost more than the rest of the step.  Rows are about different groups.

State, by group number: columns int64[13, groups], flags bool[3, groups], digests u64[groups, 2],
numbers int64[3, groups, 12] and masks bool[2, groups, 12] of each group's members.
"""

from __future__ import annotations

from typing import Any

from numba import njit

Array = Any

# Members of one group: voters up to 7, and learners while replicas move.
MEMBERS_MAX = 12

COLUMNS = 13
(
    TERM,
    LAST,
    LAST_TERM,
    DURABLE,
    COMMIT,
    LEADER,
    REPORTED,
    QUORUM,
    SENT_AT,
    PROBE_AT,
    SIZE_MAX,
    FLIGHTS_MAX,
    EPOCH,
) = range(COLUMNS)
PARKED, LEADS, LONE = range(3)
MEMBER, MATCH, ACCEPTED = range(3)
VOTES, STREAMS = range(2)


@njit(cache=True, _nrt=False)
def may_append(
    columns: Array,
    flags: Array,
    numbers: Array,
    masks: Array,
    groups: Array,
    size: Array,
    now: int,
    fast: Array,
) -> int:
    """Say in fast (bool[k]) which groups may append an op of this size; return how many."""
    count = 0
    for k in range(len(groups)):
        g = groups[k]
        last, flights = columns[LAST, g], columns[FLIGHTS_MAX, g]
        good = (
            flags[PARKED, g]
            and flags[LEADS, g]
            and last - columns[COMMIT, g] < flights
            and size[k] <= columns[SIZE_MAX, g]
            and now < columns[PROBE_AT, g]
        )
        if good:
            for member in range(MEMBERS_MAX):
                if masks[STREAMS, g, member] and last - numbers[MATCH, g, member] >= flights:
                    good = False
        fast[k] = good
        if good:
            count += 1
    return count


@njit(cache=True, _nrt=False)
def places(columns: Array, digests: Array, groups: Array, out: Array, before: Array) -> None:
    """Say where the next op of each group belongs.

    out     int64[5, k]: index, term, term of the op before, commit index, epoch
    before  u64[k, 2]: digest of the op before
    """
    for k in range(len(groups)):
        g = groups[k]
        out[0, k], out[1, k] = columns[LAST, g] + 1, columns[TERM, g]
        out[2, k], out[3, k] = columns[LAST_TERM, g], columns[COMMIT, g]
        out[4, k] = columns[EPOCH, g]
        before[k, 0], before[k, 1] = digests[g, 0], digests[g, 1]


@njit(cache=True, _nrt=False)
def append(
    columns: Array, digests: Array, groups: Array, place: Array, digest: Array, now: int
) -> None:
    """Append an op to each group at its place (`places`); now: when it is sent, -1: to nobody."""
    for k in range(len(groups)):
        g = groups[k]
        columns[LAST, g], columns[LAST_TERM, g] = place[0, k], place[1, k]
        digests[g, 0], digests[g, 1] = digest[k, 0], digest[k, 1]
        if now >= 0:
            columns[SENT_AT, g] = now


@njit(cache=True, _nrt=False)
def streaming(numbers: Array, masks: Array, groups: Array, out: Array) -> int:
    """Write the members that every group streams to, lowest first; return how many.

    -1 when groups differ in that.
    """
    count = 0
    for member in range(MEMBERS_MAX):
        if masks[STREAMS, groups[0], member]:
            place = count
            while place > 0 and out[place - 1] > numbers[MEMBER, groups[0], member]:
                out[place] = out[place - 1]
                place -= 1
            out[place] = numbers[MEMBER, groups[0], member]
            count += 1
    for k in range(1, len(groups)):
        g, found = groups[k], 0
        for member in range(MEMBERS_MAX):
            if masks[STREAMS, g, member]:
                known = False
                for place in range(count):
                    known = known or out[place] == numbers[MEMBER, g, member]
                if not known:
                    return -1
                found += 1
        if found != count:
            return -1
    return count


@njit(cache=True, _nrt=False)
def _raise_commit(columns: Array, numbers: Array, masks: Array, g: int) -> bool:
    """Commit what a majority of voters has durable; all behind commit is of this term."""
    numbers[MATCH, g, 0] = columns[DURABLE, g]
    index = columns[COMMIT, g]
    for member in range(MEMBERS_MAX):
        match = numbers[MATCH, g, member]
        if not masks[VOTES, g, member] or match <= index:
            continue
        count = 0
        for other in range(MEMBERS_MAX):
            if masks[VOTES, g, other] and numbers[MATCH, g, other] >= match:
                count += 1
        if count >= columns[QUORUM, g]:
            index = match
    if index == columns[COMMIT, g]:
        return False
    columns[COMMIT, g] = index
    return True


@njit(cache=True, _nrt=False)
def take_acks(
    source: int,
    columns: Array,
    flags: Array,
    numbers: Array,
    masks: Array,
    acks: Array,
    left: Array,
    committed: Array,
) -> Any:
    """Take what a streaming follower says it has.

    acks       int64[5, k]: group, term, asked, accepted, match
    left       int64[k]: rows that are not ordinary
    committed  int64[2, k]: groups, and up to where they are committed now
    Returns how many there are of both.
    """
    more = raised = 0
    for k in range(acks.shape[1]):
        g = acks[0, k]
        place = -1
        if flags[PARKED, g] and flags[LEADS, g] and columns[TERM, g] == acks[1, k]:
            for member in range(MEMBERS_MAX):
                if masks[STREAMS, g, member] and numbers[MEMBER, g, member] == source:
                    place = member
        if place < 0:
            left[more] = k
            more += 1
            continue
        numbers[ACCEPTED, g, place] = acks[3, k]
        if acks[4, k] <= numbers[MATCH, g, place]:
            continue
        numbers[MATCH, g, place] = acks[4, k]
        if _raise_commit(columns, numbers, masks, g):
            committed[0, raised], committed[1, raised] = g, columns[COMMIT, g]
            raised += 1
    return more, raised


@njit(cache=True, _nrt=False)
def accept(
    source: int,
    columns: Array,
    flags: Array,
    digests: Array,
    said: Array,
    prev_digest: Array,
    ops: Any,
    before: Any,
    fast: Array,
    committed: Array,
) -> Any:
    """Take ops that continue what parked groups have of this leader.

    said       int64[3, k]: term, previous term, commit index
    ops        groups, index, term (int64[k]) and digest (u64[k, 2])
    before     digest (u64[k, 2]), term and epoch (int64[k]) of what each op follows
    fast       bool[k]: which are taken
    committed  int64[2, k]: groups, and up to where they are committed now
    Returns how many are taken, and committed.
    """
    groups, index, term, digest = ops
    before_digest, before_term, epoch = before
    taken = raised = 0
    for k in range(len(groups)):
        g = groups[k]
        fast[k] = (
            flags[PARKED, g]
            and not flags[LEADS, g]
            and columns[LEADER, g] == source
            and columns[TERM, g] == said[0, k]
            and columns[LAST, g] + 1 == index[k]
            and columns[LAST_TERM, g] == said[1, k]
            and digests[g, 0] == prev_digest[k, 0]
            and digests[g, 1] == prev_digest[k, 1]
        )
        if not fast[k]:
            continue
        before_digest[taken, 0], before_digest[taken, 1] = digests[g, 0], digests[g, 1]
        before_term[taken], epoch[taken] = columns[LAST_TERM, g], columns[EPOCH, g]
        columns[LAST, g], columns[LAST_TERM, g] = index[k], term[k]
        digests[g, 0], digests[g, 1] = digest[k, 0], digest[k, 1]
        taken += 1
        commit = min(said[2, k], index[k])
        if commit > columns[COMMIT, g]:
            columns[COMMIT, g] = commit
            committed[0, raised], committed[1, raised] = g, commit
            raised += 1
    return taken, raised


@njit(cache=True, _nrt=False)
def note_durable(
    columns: Array, flags: Array, groups: Array, index: Array, epochs: Array, out: Array
) -> int:
    """Note that ops are durable that were appended in these epochs; return of how many groups.

    Those are written to out (int64[k]); what was appended in an earlier epoch is not ours.
    """
    count = 0
    for k in range(len(groups)):
        g = groups[k]
        if flags[PARKED, g] and columns[EPOCH, g] == epochs[k]:
            columns[DURABLE, g] = index[k]
            out[count] = g
            count += 1
    return count


@njit(cache=True, _nrt=False)
def count_durable(
    columns: Array,
    flags: Array,
    numbers: Array,
    masks: Array,
    groups: Array,
    committed: Array,
    told: Array,
) -> Any:
    """Commit what is durable in groups that are led here; say what to tell the other leaders.

    committed  int64[2, k]: groups, and up to where they are committed now
    told       int64[6, k]: leader, group, term, 0, last, durable
    Returns how many there are of both, and whether all of told have one leader.
    """
    raised = count = 0
    alike = True
    for k in range(len(groups)):
        g = groups[k]
        if flags[LEADS, g]:
            if _raise_commit(columns, numbers, masks, g):
                committed[0, raised], committed[1, raised] = g, columns[COMMIT, g]
                raised += 1
        elif columns[DURABLE, g] > columns[REPORTED, g]:
            columns[REPORTED, g] = columns[DURABLE, g]
            told[0, count], told[1, count] = columns[LEADER, g], g
            told[2, count], told[3, count] = columns[TERM, g], 0
            told[4, count], told[5, count] = columns[LAST, g], columns[DURABLE, g]
            alike = alike and told[0, count] == told[0, 0]
            count += 1
    return raised, count, alike


@njit(cache=True, _nrt=False)
def rows_of(groups: Array, out: Array) -> None:
    """Write to out (int64[groups]) the row of each group that is among these; -1: it is not."""
    for g in range(len(out)):
        out[g] = -1
    for k in range(len(groups)):
        out[groups[k]] = k


@njit(cache=True, _nrt=False)
def any_counts(columns: Array, flags: Array, groups: Array, epochs: Array) -> bool:
    """Whether any of these groups is still in the epoch that it was in then."""
    for k in range(len(groups)):
        if flags[PARKED, groups[k]] and columns[EPOCH, groups[k]] == epochs[k]:
            return True
    return False


@njit(cache=True, _nrt=False)
def raise_to(committed: Array, told: Array, groups: Array, index: Array, out: Array) -> int:
    """Note up to where groups are committed, and write to out (int64[2, k]) what is news.

    committed, told  int64[groups]: what is known, and up to where nothing need be said
    Returns how many there are.
    """
    count = 0
    for k in range(len(groups)):
        g = groups[k]
        committed[g] = max(committed[g], index[k])
        if index[k] > told[g]:
            out[0, count], out[1, count] = g, index[k]
            count += 1
    return count
