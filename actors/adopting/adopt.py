"""Adopts partitions: makes, beside a node's directory, the files with which it has them.

The node's own directory and a copy of a peer's go in.  Out come, in a third one, the files that
change; `peer_copy.complete` has them all count in one step.  What it is made of, and why, is in
docs/PARTITION_COPY.md.

Invariants:
  * of an adopted group everything is the peer's, up to the peer's last applied op; nothing of what
    the node had of it before is left
  * of every other group nothing changes
  * a group is adopted only when the node's own log has no op of it behind that
"""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.actors.adopting import identities, rows, totals
from meterd.actors.adopting.loaded import Loaded, Say, first_ops
from meterd.actors.adopting.rows import Mask, Sealed
from meterd.actors.files import disk
from meterd.actors.files.mapped import map_file
from meterd.actors.keeping.checkpoints import CURRENT
from meterd.actors.log.wal_log import Entry, Log
from meterd.actors.log.wal_recovery import Owner
from meterd.actors.log.wal_spare import Spare
from meterd.actors.starting.identity import Identity
from meterd.actors.starting.peer_copy import is_taken
from meterd.actors.starting.start_checks import CHECKPOINTS
from meterd.core.cluster.members import Members
from meterd.protocol import checkpoint_format, log_facts
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.log_format import GROUP_COUNT, META_GROUP, Damaged
from meterd.protocol.segment_format import SegmentName


class Adopted(NamedTuple):
    """What became of it."""

    groups: int
    events: int  # stored, of these groups
    names: list[str]  # of all files that the directory has then


def has_all(directory: str, node: int, donor: int) -> bool:
    """Has a copy of a donor's directory every group that a node is to have?

    Then the whole directory may take the own one's place, which is less work.
    """
    for name in CHECKPOINTS:
        try:
            state = checkpoint_format.read_state(map_file(os.path.join(directory, name)).data)
        except (FileNotFoundError, Damaged):
            continue
        members = Members.from_bytes(state["members"])
        if donor not in members.nodes:
            return False
        member = members.nodes[donor].member
        held = {
            group
            for group, (voters, learners) in state["log"].get("configurations", {}).items()
            if member in (*voters, *learners)
        }
        return held >= set(members.held(node))
    return True  # its log begins at the beginning


def lacking(own: Loaded, donor: Loaded, node: int) -> Mask:
    """Return the groups (bool[257]) that a node is to have and cannot get from the donor's log.

    Its leaders' logs may reach back further, so that is a guess; whoever still lacks something is
    told so by them.
    """
    replayer, found = donor.replayer, np.zeros(GROUP_COUNT, np.bool_)
    found[replayer.state.members.held(node)] = True
    first, index = first_ops(donor), own.end.groups.index
    return found & ((first == 0) | (first > index + np.uint64(1)))


def adoptable(own: Loaded, donor: Loaded, wanted: Mask) -> Mask:
    """Return which of the wanted groups (bool[257]) the donor can give.

    It has a replica by its configuration, and has applied more than the own log holds.  The meta
    group is always wanted: partitions need its metrics.
    """
    facts, applied = donor.replayer.applier.facts, donor.replayer.groups.index
    found = wanted.copy()
    found[META_GROUP] = True
    ahead: NDArray[np.bool_] = applied > own.end.groups.index
    for group in np.flatnonzero(found).tolist():
        found[group] = ahead[group] and donor.member in facts.configurations[group].members
    return found


def knows_metrics(own: Loaded, donor: Loaded, groups: Mask) -> bool:
    """Does the own state know the metrics of all rows that would come of some groups (bool[257])?

    Where the own log has the meta group as far as the donor it is not adopted; but the checkpoint
    may be older than that.
    """
    mine, theirs = own.replayer.state.registry, donor.replayer.state.registry
    return bool(groups[META_GROUP]) or mine.version >= theirs.version


def adopt(
    own: Loaded, donor: Loaded, groups: Mask, who: Identity, log_size: int, target: str, say: Say
) -> Adopted:
    """Write the files with which the node has these groups into `target`, which is empty.

    The donor is brought up (`loaded.bring_up`).  The own log gets files without events, whose
    numbers the new segments have; that does no harm when nothing follows.  Both states are used up.
    Raises Corrupt, StorageError, InvariantViolation, DiskFull, FsyncFailed, OSError.
    """
    say(f"taking {int(groups.sum())} groups over")
    bundles = rows.bundles(donor)
    sealed, last_file = _seal(own, who, len(bundles), log_size)
    replaced = rows.leave_out(own, groups, target)
    rows.refuse(own, groups)
    segments, events = [], 0
    for bundle, file in zip(bundles, sealed, strict=True):
        say(f"copying rows of log files {bundle[0].first} to {bundle[-1].last} of the peer")
        name, count = rows.take(donor, bundle, groups, file, target)
        segments.append(name)
        events += count
        repaired = donor.replayer.groups.repaired
        if any(one.first <= number <= one.last for one in bundle for number in repaired):
            own.replayer.groups.note_repair(file.number)
    state, other = own.replayer.state, donor.replayer.state
    state.adopt(other, groups)
    events += totals.adopt(own, donor, groups, state.erasures, target)
    state.stored += events
    for group in np.flatnonzero(groups).tolist():
        own.replayer.groups.adopt(donor.replayer.groups, group, last_file)
        own.replayer.applier.facts.adopt(donor.replayer.applier.facts, group)
    say("entering identities")
    runs = identities.write(own, donor, groups, segments, target)
    _save(own, runs, target)
    return Adopted(int(groups[:PARTITION_COUNT].sum()), events, _names(own, replaced, target))


def _seal(own: Loaded, who: Identity, count: int, size: int) -> tuple[list[Sealed], int]:
    """Have the own log go on `count` files later, each of them with the node's promises alone.

    Returns these, and the number of the file before the one in which it goes on.
    """
    device, directory = disk.LocalDisk(), own.directory
    spare = Spare(device, directory, size)
    log = Log(device, directory, spare, Owner.of(who, directory), time.time_ns)
    log.open(own.end)
    sequence, found = own.end.groups.sequence, []
    terms = own.end.logs.promised()
    for _ in range(count):
        log.begin_file()
        sequence += 1
        head, payload = log_facts.encode_terms(terms, sequence)
        log.append([Entry(sequence, head, payload)])
        found.append(Sealed(log.file_number, log.place.previous_crc, log.place.offset))
    log.begin_file()
    log.close()
    spare.close()
    return found, log.file_number - 1


def _save(own: Loaded, runs: list[list[Any]], target: str) -> None:
    """Write the checkpoint."""
    replayer = own.replayer
    snapshot = replayer.state.save()
    files = replayer.identities
    state = snapshot.state | {
        "log": {
            "file_number": replayer.position.file_number,
            **replayer.groups.packed(),
            **replayer.applier.facts.packed(),
        },
        "position": list(replayer.position),
        "refused": replayer.applier.refused.to_map(),
        "runs": [*files["runs"], *runs],
        "parts": files["parts"],
    }
    encoded = checkpoint_format.encode(state, snapshot.arrays())
    disk.atomic_write(os.path.join(target, CURRENT), encoded)
    replayer.state.end_save()


def _names(own: Loaded, replaced: list[SegmentName], target: str) -> list[str]:
    """Return the names of all files that are a part of copies: old ones that stay, and new ones.

    The previous checkpoint does not stay: what it is about is not in the files any more.
    """
    gone = {part for name in replaced for part in rows.parts_of(name)}
    stay = {
        name
        for name in os.listdir(own.directory)
        if is_taken(name) and name not in gone and "checkpoint" not in name and name[:4] != "held"
    }
    return sorted(stay | set(os.listdir(target)))
