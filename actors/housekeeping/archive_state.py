"""What is in the archive: `archive.bin`, which says through which log file, and where gaps are.

Log files are archived in the order of their numbers, so one number says it all.  A gap is a range
of files that never will be: they were given up because too many waited, or deleted while there was
no archive.  The file is a shortcut, not the truth: without it archiving begins with the oldest file
again and finds what is stored already.

A restored directory uses numbers of log files again that the life it gave up has used: what
`archive.bin` of that life says is left alone, and archiving begins anew (`name_prefix`).  So does
the node that takes the place of one whose directory was given up: its log begins with file 1.

Written by the job's thread and by the actor's loop, so a lock is held over each change.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

from meterd.actors.files.disk import atomic_write
from meterd.actors.starting import restored
from meterd.actors.starting.identity import Identity
from meterd.core.cluster.members import FIRST_INCARNATION
from meterd.protocol import checkpoint_format
from meterd.protocol.log_format import Damaged

FILE_NAME = "archive.bin"
# More gaps than this become one that spans the oldest.
GAPS_MAX = 1_000

logger = logging.getLogger(__name__)


class Gap(NamedTuple):
    """Log files that are not in the archive and never will be."""

    first: int
    last: int
    told: bool  # the archive holds an object that says so


def name_prefix(directory: str, who: Identity) -> str:
    """Return what the names of a directory's objects begin with.  Raises Corrupt."""
    prefix = f"{who.cluster_id_hex}/node-{who.node_id}"
    if who.incarnation > FIRST_INCARNATION:
        prefix = f"{prefix}/incarnation-{who.incarnation}"
    moment = restored.moment(directory)
    return f"{prefix}/restored-{moment}" if moment else prefix


class ArchiveState:
    """What is known of one target; another target begins anew."""

    def __init__(self, directory: str, incarnation: int = FIRST_INCARNATION) -> None:
        """Raises Corrupt when `restored.json` is damaged."""
        self._path = Path(directory, FILE_NAME)
        self._incarnation = incarnation
        self._restored = restored.moment(directory)
        self._lock = threading.Lock()
        self.target = ""
        self.through = 0
        self.gaps: tuple[Gap, ...] = ()
        self.last_success: int | None = None  # UTC ns
        self._load()

    def use(self, target: str) -> None:
        """Go on with this target.  Raises DiskFull."""
        if target != self.target:
            with self._lock:
                self._save(target, 0, (), None)

    def stored(self, number: int, now: int) -> None:
        """The file is in the archive.  Raises DiskFull."""
        with self._lock:
            self._save(self.target, max(self.through, number), self.gaps, now)

    def give_up(self, last: int, first: int | None = None) -> Gap:
        """Files from `first` (else the next one) to `last` will never be there.

        Raises DiskFull.
        """
        with self._lock:
            gap = Gap(self.through + 1 if first is None else first, last, False)
            gaps = [*self.gaps, gap]
            if len(gaps) > 1 and not gaps[-2].told and gaps[-2].last + 1 == gap.first:
                gaps[-2:] = [Gap(gaps[-2].first, last, False)]
            if len(gaps) > GAPS_MAX:
                gaps[:2] = [Gap(gaps[0].first, gaps[1].last, False)]
            self._save(self.target, max(self.through, last), tuple(gaps), self.last_success)
            return gap

    def told(self, gap: Gap) -> None:
        """The archive holds an object that names the gap.  Raises DiskFull."""
        with self._lock:
            gaps = tuple(one._replace(told=True) if one == gap else one for one in self.gaps)
            self._save(self.target, self.through, gaps, self.last_success)

    def close_gaps(self, first_file: int) -> None:
        """A full backup begins with this log file: no restore needs those before it.

        Raises DiskFull.
        """
        with self._lock:
            gaps = tuple(gap for gap in self.gaps if gap.last >= first_file)
            if gaps != self.gaps:
                self._save(self.target, self.through, gaps, self.last_success)

    def _load(self) -> None:
        try:
            state = checkpoint_format.read_state(self._path.read_bytes())
        except FileNotFoundError:
            return
        except Damaged as damage:
            logger.error("%s is damaged, archiving begins anew: %s", FILE_NAME, damage)
            return
        if state.get("restored", 0) != self._restored:
            logger.info(
                "this directory was restored: archiving begins anew, under names of its own"
            )
            return
        if state.get("incarnation", FIRST_INCARNATION) != self._incarnation:
            logger.info(
                "archiving begins anew, under the names of incarnation %d", self._incarnation
            )
            return
        self.target, self.through = state["target"], state["through"]
        self.gaps = tuple(Gap(*gap) for gap in state["gaps"])
        self.last_success = state["last_success"]

    def _save(
        self, target: str, through: int, gaps: tuple[Gap, ...], last_success: int | None
    ) -> None:
        state: dict[str, Any] = {
            "kind": "archive",
            "target": target,
            "through": through,
            "gaps": [list(gap) for gap in gaps],
            "last_success": last_success,
            "restored": self._restored,
            "incarnation": self._incarnation,
        }
        atomic_write(os.fspath(self._path), checkpoint_format.encode(state, {}))
        self.target, self.through, self.gaps = target, through, gaps
        self.last_success = last_success
