"""What the usage actor tells others about expiry: horizons, and which accounts are erased.

`erased.bin` (`erased_file.py`) is written before the answer to an erasure leaves.  A start erases
again what the file knows and the state does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgpack
import numpy as np

from meterd.actors.frames.sockets import Frame
from meterd.actors.keeping.erased_file import FILE_NAME, add_erasures, read_erasures
from meterd.core.cluster.group_facts import ALONE
from meterd.protocol import log_format
from meterd.protocol.errors import DiskFull

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

# Checkpoints to be saved after an erasure, until none is left that holds what was erased.
SAVES = 2

logger = logging.getLogger(__name__)


class ExpiryNotices:
    """See the module."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._directory = usage.options.node.data_dir
        self._written = 0  # erasures in the file that the state knows
        self._waits = False  # for room
        self._answers: list[Frame] = []  # that may leave when the file is written
        self._calls: list[Callable[[], None]] = []  # to be made then
        self.saves_due = 0
        self._told: tuple[int, int, int] | None = None  # horizons and erasures
        self.missing: set[bytes] = set()  # erasures to be applied before any question is answered

    def begin(self) -> None:
        """The log is replayed: erase again what the file knows and the state does not.

        This is proposed before anybody may propose events.  Of partitions that have no replica here
        nothing is asked here, and nothing would ever be applied.  Raises Corrupt.
        """
        state = self._usage.state
        known = read_erasures(self._directory)
        missing = [
            one
            for one in known
            if not state.erasures.knows(one.id) and self._is_member(one.partition)
        ]
        self.missing = {erasure.id for erasure in missing}
        for erasure in missing:
            command = {
                "op": "account_erase",
                "id": erasure.id,
                "account": erasure.account,
                "root": erasure.root,
                "subtree": erasure.subtree,
            }
            self._usage.propose(log_format.ACCOUNT, np.array([erasure.partition]), command)
        if missing:
            logger.warning("erasing %d accounts again: the state is from before", len(missing))
        if {one.id for one in state.erasures} <= {one.id for one in known}:
            self._written = len(state.erasures)
        self.turn()
        self.announce()

    def _is_member(self, partition: int) -> bool:
        configuration = self._usage.applier.facts.configurations.get(partition, ALONE)
        return self._usage.who.member in configuration.members

    def follow(self, answers: list[Frame], done: Callable[[], None] | None = None) -> None:
        """A command was applied: keep and tell what it has changed, then let its answers go.

        done: what else may happen only then.
        """
        if done is not None:
            self._calls.append(done)
        self.missing = {one for one in self.missing if not self._usage.state.erasures.knows(one)}
        self._answers += answers
        self.turn()
        self.announce()

    def turn(self) -> None:
        """Write what is new, as soon as there is room for it; then answers may leave."""
        count = len(self._usage.state.erasures)
        if count != self._written:
            try:
                add_erasures(self._directory, self._usage.state.erasures)
            except DiskFull as full:
                if not self._waits:
                    logger.warning("no room for %s; it is written later: %s", FILE_NAME, full)
                self._waits = True
                return
            self._waits, self._written, self.saves_due = False, count, SAVES
        if self._answers:
            self._usage.answers.add(self._answers)
            self._answers = []
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def saved(self) -> None:
        """A checkpoint was begun."""
        self.saves_due = max(0, self.saves_due - 1)

    def forget_told(self) -> None:
        """The retention sweeper has started anew: it must be told again."""
        self._told = None

    def announce(self) -> None:
        """Tell the retention sweeper, if anything has changed."""
        state = self._usage.state
        told = (state.horizon, state.totals_horizon, len(state.erasures))
        if told == self._told:
            return
        self._told = told
        said = {
            "horizon": state.horizon,
            "totals_horizon": state.totals_horizon,
            "erasures": state.erasures.to_lists(),
        }
        self._usage.send("retention_sweeper", [b"expiry", msgpack.packb(said)])
