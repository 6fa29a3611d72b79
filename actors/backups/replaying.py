"""Loads a directory that no node runs on, as a node's start does, to see what comes out.

The log is checked as at a start, the checkpoint loaded, the log behind it replayed through the
state machine as far as it was committed, and the stored events in all files counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from meterd.actors.backups.counting import Counting
from meterd.actors.backups.reading import Memory
from meterd.actors.files.disk import LocalDisk
from meterd.actors.keeping.checkpoints import Checkpoints
from meterd.actors.keeping.identity_store import IdentityStore
from meterd.actors.log import replay
from meterd.actors.log.wal_recovery import Owner, Recovery
from meterd.actors.options import Limits
from meterd.actors.starting import identity
from meterd.actors.starting.identity import Identity
from meterd.actors.starting.start_checks import check_checkpoints
from meterd.actors.usage import RECENT_FLUSH, RECENT_MAX, RECENT_WAIT
from meterd.core.cluster.group_facts import GroupFacts
from meterd.core.kernels.tables import Capacity
from meterd.core.log.commit_queue import CommitQueue
from meterd.core.log.refused_rows import RefusedRows
from meterd.core.log.scan import Groups
from meterd.core.state.applier import Applier
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from meterd.protocol.backup_manifest import TotalsMap
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import GROUP_COUNT

Say = Callable[[str], None]


class Replayed(NamedTuple):
    """What a directory brings back."""

    position: replay.Position  # the end of its log
    sequence: int  # of the last record there
    groups: Groups  # applied
    events: int  # counted by the state machine, ever
    replayed: int  # of them, from the log behind the checkpoint
    totals: TotalsMap


class Replayer:
    """As much of the usage actor as a replay needs."""

    def __init__(
        self, directory: str, say: Say, who: Identity, limits: Limits | None = None
    ) -> None:
        self.options = SimpleNamespace(node=SimpleNamespace(data_dir=directory))
        self.lifeline = SimpleNamespace(say=say)
        key = who.identity_key
        words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
        limits = limits or Limits()
        capacity = Capacity(
            recent=RECENT_MAX,
            accounts=limits.accounts,
            series=limits.series,
            cells=limits.cells,
            members=limits.cells,
        )
        self.state = StateMachine(words, capacity, who.beginning)
        self.applier = Applier(self.state)
        self.applier.facts.begin(who.first_configurations)
        self._first = who.first_configurations
        self.identities: dict[str, Any] = {"runs": [], "parts": []}  # files that are in use
        self._use_log(Groups(), replay.BEGINNING)
        self._identities = IdentityStore(directory, self.state, RECENT_FLUSH)
        Checkpoints(directory, self._identities).load(self._restore)

    def _restore(self, state: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.state.restore(state, arrays)
        self.applier.refused = RefusedRows.from_map(state["refused"])
        self.applier.facts = GroupFacts.unpacked(state["log"])
        self.applier.facts.begin(self._first)
        self.identities = {kind: state[kind] for kind in self.identities}
        self._use_log(Groups.unpacked(state["log"]), replay.Position(*state["position"]))

    def _use_log(self, groups: Groups, position: replay.Position) -> None:
        self.groups = groups
        self.queue: CommitQueue[None] = CommitQueue(groups, position, self._registry_version)

    def _registry_version(self) -> int:
        return self.state.registry.version

    @property
    def position(self) -> replay.Position:
        return replay.Position(*self.queue.position)

    def apply_ready(self) -> None:
        """Apply what the log holds."""
        for ready in self.queue.ready():
            if ready.record.kind == log_format.EVENTS:
                self.applier.events(ready)
            else:
                self.applier.other(ready)

    def maybe_save(self) -> None:
        """Make room in memory for the identities that come next."""
        full = self.state.recent >= RECENT_WAIT
        self._identities.step(time.monotonic(), may_flush=True, wait=full)

    def finish(self) -> None:
        """Wait for what is done beside the replay."""
        self._identities.finish()


def replay_directory(
    directory: str, names: list[str], say: Say, committed: Mapping[int, int] | None = None
) -> Replayed:
    """Load a directory, whose files are named; return what it holds.  Raises Corrupt.

    committed: index up to which each group is, 0 for those that are not named; None: all of it is.
    It may add files of identities and repair the log, so it must not be a node's own directory.
    """
    who = identity.read(directory)
    owner = Owner.of(who, directory)
    disk = LocalDisk()
    end = Recovery(disk, directory, owner, check_checkpoints(disk, directory), say, who).run()
    if end is None:
        raise Corrupt(directory, 0, "there is no log")
    if end.torn is not None:
        raise Corrupt(directory, end.torn.start, "the log's last block is torn")
    replayer: Any = Replayer(directory, say, who)
    last, wanted = end.groups.sequence, np.zeros(GROUP_COUNT, np.uint64)
    for group, index in (committed or {}).items():
        wanted[group] = index
    replayed = replay.replay(replayer, last, None if committed is None else wanted)
    for ready in replayer.queue.waiting():  # their rows are not stored
        replayer.applier.wait(ready)
    replayer.finish()
    cut = (end.file_number, end.place.offset)
    refused = {n: replayer.applier.refused.packed(n) for n in replayer.applier.refused.files()}
    say("counting the stored events")
    totals = Counting(directory, Memory(), lambda: None).totals(names, cut, refused)
    position = replay.Position(end.file_number, *end.place)
    stored = replayer.state.stored
    return Replayed(position, last, replayer.groups, stored, replayed, totals)
