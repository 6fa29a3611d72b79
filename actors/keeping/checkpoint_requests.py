"""Saves a checkpoint when somebody asks for one, and says so when it is durable.

One that is being saved when the request comes may lack what was acknowledged before it, so another
is begun behind it; all who wait then share that one.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.actors.keeping.checkpoints import CURRENT
from meterd.protocol.errors import DiskStop

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

KIND = "checkpoint"


class Waiting(NamedTuple):
    """Who waits for which save; without a rid nobody needs an answer."""

    rid: bytes
    request_id: int
    save: int


class CheckpointRequests:
    """The usage actor tells it when a save begins and calls `turn` while `busy`."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._waiting: list[Waiting] = []  # bounded by what the router admits
        self._begun = self._ended = 0  # saves
        self._began = 0.0  # seconds since the epoch

    def begun(self) -> None:
        """A save begins now."""
        self._begun += 1
        self._began = time.time()

    def ask(self, rid: bytes = b"", request_id: int = 0) -> None:
        """Save what is applied by now."""
        self._waiting.append(Waiting(rid, request_id, self._begun + 1))
        self.turn()

    @property
    def busy(self) -> bool:
        """Does somebody wait?"""
        return bool(self._waiting)

    def turn(self) -> None:
        """Begin a save that is wanted, and answer those whose save has ended."""
        usage = self._usage
        if self._ended < self._begun and not usage.saving:
            facts = self._facts()
            usage.telemetry.observe("checkpoint_duration_seconds", facts["seconds"])
            usage.telemetry.set("checkpoint_bytes", facts["bytes"])
            for one in self._take_ended():
                usage.answers.result(one.rid, one.request_id, KIND, facts)
            usage.answers.send()
        if usage.may_save and any(one.save > self._begun for one in self._waiting):
            usage.save()

    def spoiled(self) -> None:
        """The save that was begun last came to nothing: who waits for it waits for the next."""
        self._begun -= 1

    def failed(self) -> None:
        """The save that was begun last has found no room on the disk."""
        for one in self._take_ended():
            error = DiskStop("there is no room for a checkpoint")
            self._usage.answers.error(one.rid, one.request_id, KIND, error)
        self._usage.answers.send()

    def _take_ended(self) -> list[Waiting]:
        """All saves that were begun have ended; return who waits for an answer to them."""
        self._ended = self._begun
        ended = [one for one in self._waiting if one.save <= self._ended]
        self._waiting = [one for one in self._waiting if one.save > self._ended]
        return [one for one in ended if one.rid]

    def _facts(self) -> dict[str, Any]:
        """Say what the newest durable checkpoint covers, and what it cost."""
        directory, saved_at = self._usage.options.node.data_dir, self._usage.saved_at
        return {
            **(self._usage.checkpoint_facts() or {}),
            "bytes": os.stat(os.path.join(directory, CURRENT)).st_size,
            "seconds": round(max(0.0, saved_at - self._began), 6),
            "saved_at": int(saved_at * 1_000_000_000),
        }
