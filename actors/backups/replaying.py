"""Loads a directory that no node runs on, as a node's start does, to see what comes out.

The log is checked as at a start, the checkpoint loaded, the log behind it replayed through the
state machine, and the stored events in all files counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from meterd.actors import identity, replay
from meterd.actors.backups.counting import Counting
from meterd.actors.backups.reading import Memory
from meterd.actors.checkpoints import Checkpoints
from meterd.actors.disk import LocalDisk
from meterd.actors.identity_store import IdentityStore
from meterd.actors.options import Limits
from meterd.actors.start_checks import check_checkpoints
from meterd.actors.usage import RECENT_FLUSH, RECENT_MAX, RECENT_WAIT
from meterd.actors.wal_recovery import Owner, Recovery
from meterd.core.kernels.tables import Capacity
from meterd.core.log_scan import Groups
from meterd.core.refused_rows import RefusedRows
from meterd.core.state import StateMachine
from meterd.protocol import log_format
from meterd.protocol.backup_manifest import TotalsMap
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import Record

Say = Callable[[str], None]


class Replayed(NamedTuple):
    """What a directory brings back."""

    position: replay.Position
    groups: Groups
    events: int  # counted by the state machine, ever
    replayed: int  # of them, from the log behind the checkpoint
    totals: TotalsMap


class Replayer:
    """As much of the usage actor as a replay needs."""

    def __init__(self, directory: str, say: Say) -> None:
        self.options = SimpleNamespace(node=SimpleNamespace(data_dir=directory))
        self.lifeline = SimpleNamespace(say=say)
        who = identity.read(directory)
        key = who.identity_key
        words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
        limits = Limits()
        capacity = Capacity(
            recent=RECENT_MAX,
            accounts=limits.accounts,
            series=limits.series,
            cells=limits.cells,
            members=limits.cells,
        )
        self.state = StateMachine(words, capacity, who.beginning)
        self.refused = RefusedRows()
        self.groups = Groups()
        self.position = replay.BEGINNING
        self._identities = IdentityStore(directory, self.state, RECENT_FLUSH)
        Checkpoints(directory, self._identities).load(self._restore)

    def _restore(self, state: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.state.restore(state, arrays)
        self.refused = RefusedRows.from_map(state["refused"])
        self.groups = Groups.unpacked(state["log"])
        self.position = replay.Position(*state["position"])

    def apply(self, record: Record, file_number: int, first_row: int, _origin: None) -> None:
        """Apply one record."""
        self.groups.follow(record)
        if record.kind != log_format.EVENTS:
            self.state.apply_command(record)
            return
        self.refused.note(file_number, first_row, self.state.apply_events(record) != 0)

    def maybe_save(self) -> None:
        """Make room in memory for the identities that come next."""
        full = self.state.recent >= RECENT_WAIT
        self._identities.step(time.monotonic(), may_flush=True, wait=full)

    def finish(self) -> None:
        """Wait for what is done beside the replay."""
        self._identities.finish()


def replay_directory(directory: str, names: list[str], say: Say) -> Replayed:
    """Load a directory, whose files are named; return what it holds.  Raises Corrupt.

    It may add files of identities and repair the log, so it must not be a node's own directory.
    """
    who = identity.read(directory)
    owner = Owner(who.node_id, who.cluster_id, who.identity_key)
    disk = LocalDisk()
    end = Recovery(disk, directory, owner, check_checkpoints(disk, directory), say).run()
    if end is None:
        raise Corrupt(directory, 0, "there is no log")
    if end.torn is not None:
        raise Corrupt(directory, end.torn.start, "the log's last block is torn")
    replayer: Any = Replayer(directory, say)
    replayed = replay.replay(replayer, end.groups.sequence)
    replayer.finish()
    cut = (end.file_number, end.place.offset)
    refused = {n: replayer.refused.packed(n) for n in replayer.refused.files()}
    say("counting the stored events")
    totals = Counting(directory, Memory(), lambda: None).totals(names, cut, refused)
    position = replay.Position(end.file_number, *end.place)
    return Replayed(position, replayer.groups, replayer.state.stored, replayed, totals)
