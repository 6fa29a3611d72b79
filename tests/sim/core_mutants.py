"""Bugs put on purpose where the second layer looks: log, recovery, wire, commit queue, state.

`python -m tests.sim.core_mutants 100` reports how many seeds each one takes.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from meterd.core.cluster import raft_log, replicas
from meterd.core.cluster.group_facts import GroupFacts
from meterd.core.cluster.replicas import Replicas
from meterd.core.log.commit_queue import CommitQueue
from meterd.core.log.group_logs import GroupLogs
from meterd.core.state.machine import StateMachine
from meterd.protocol import raft_wire
from tests.sim import core_machine, core_usage
from tests.sim.bugs import Bugs, Patch
from tests.sim.core_world import run_core
from tests.support.crash_disk import CrashDisk

BUGS = Bugs(run_core)


# Disk and log.


@BUGS.add
def the_log_is_not_synced() -> list[Patch]:
    return [(CrashDisk, "sync", lambda disk, descriptor: disk._call())]


@BUGS.add
def terms_are_not_read_back() -> list[Patch]:
    return [(GroupLogs, "promise", lambda logs, rows: None)]


@BUGS.add
def votes_are_not_read_back() -> list[Patch]:
    original = GroupLogs.promise

    def promise(logs: GroupLogs, rows: Any) -> None:
        rows = rows.copy()
        rows["vote"] = 0
        original(logs, rows)

    return [(GroupLogs, "promise", promise)]


@BUGS.add
def replaced_ops_stay() -> list[Patch]:
    """Recovery keeps of an index what came first."""
    original = GroupLogs.ops

    def ops(logs: GroupLogs) -> Any:
        kept = original(logs)
        found = np.concatenate(logs._chunks) if logs._chunks else kept
        for row in range(len(kept)):
            same = (found["group"] == kept["group"][row]) & (found["index"] == kept["index"][row])
            kept[row] = found[np.flatnonzero(same)[0]]
        return kept

    return [(GroupLogs, "ops", ops)]


@BUGS.add
def refused_slices_count() -> list[Patch]:
    """Slices that the engine has not taken are written as if it had."""
    original = raft_log._absent

    def absent(record: Any) -> Any:
        table = original(record)
        table["flags"] = 0
        return table

    return [(raft_log, "_absent", absent)]


# Commit queue and state.


@BUGS.add
def what_is_durable_is_applied() -> list[Patch]:
    original = CommitQueue.add_commit

    def add_commit(queue: Any, located: Any, end: Any, committed: bool) -> None:
        original(queue, located, end, True)

    return [(CommitQueue, "add_commit", add_commit)]


@BUGS.add
def replaced_slices_are_applied() -> list[Patch]:
    return [(CommitQueue, "_cut", lambda queue, held: None)]


@BUGS.add
def the_replay_does_not_pass_over_what_is_applied() -> list[Patch]:
    original = CommitQueue.replay

    def replay(queue: Any, last: int, last_index: Any, cuts: Any) -> None:
        original(queue, last, last_index, cuts)
        queue._base[:] = 0

    return [(CommitQueue, "replay", replay)]


@BUGS.add
def a_checkpoint_forgets_identities() -> list[Patch]:
    original = core_usage.Usage.save

    def save(usage: Any) -> Any:
        saved = original(usage)
        return saved._replace(identities=saved.identities[: len(saved.identities) // 2])

    return [(core_usage.Usage, "save", save)]


@BUGS.add
def the_position_is_behind_what_waits() -> list[Patch]:
    original = core_usage.Usage.save

    def save(usage: Any) -> Any:
        saved = original(usage)
        end = core_usage.Position(*usage.queue.end)
        newest = max([usage.queue.groups.sequence, *usage.queue._held])
        log = saved.log | {"sequence": newest, "file_number": end.file_number}
        return saved._replace(position=end, log=log)

    return [(core_usage.Usage, "save", save)]


@BUGS.add
def a_restart_forgets_horizons() -> list[Patch]:
    original = StateMachine.restore

    def restore(state: Any, saved: Any, arrays: Any) -> None:
        original(state, saved, arrays)
        state.horizons = type(state.horizons)()

    return [(StateMachine, "restore", restore)]


@BUGS.add
def members_of_the_beginning_are_not_known() -> list[Patch]:
    return [(GroupFacts, "begin", lambda facts, first: None)]


# Replicas and wire.


@BUGS.add
def a_block_is_durable_with_its_first_record() -> list[Patch]:
    original = Replicas._appends

    def appends(self: Any, output: Any, cause: Any) -> Any:
        made = original(self, output, cause)
        _, number, ops = self._blocks.pop()
        self._blocks.append((made[0].sequence - 1, number, ops))
        return made

    return [(Replicas, "_appends", appends)]


@BUGS.add
def commits_are_told_too_far() -> list[Patch]:
    original = replicas._joined

    def joined(groups: Any, index: Any, more: Any, up_to: Any) -> Any:
        return original(groups, index, more, up_to + 1)

    return [(replicas, "_joined", joined)]


@BUGS.add
def what_others_send_is_not_checked() -> list[Patch]:
    """One byte of a payload changes, and nobody looks."""
    original = raft_wire.encode

    def encode(envelope: Any, *more: Any) -> Any:
        frames = original(envelope, *more)
        if len(frames) > 1 and len(frames[1]) > 100 and envelope.block % 20 == 0:
            changed = bytearray(frames[1])
            changed[-20] ^= 1
            frames[1] = bytes(changed)
        return frames

    return [(core_machine, "encode", encode)]


if __name__ == "__main__":
    sys.exit(BUGS.report(sys.argv[1:], 40, {}))
