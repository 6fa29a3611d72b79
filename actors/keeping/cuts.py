"""Says for backups where the log ends, if wanted after a checkpoint of it is durable.

A backup asks (`cut`) and is answered with everything about that moment which only memory knows: the
end of the durable log, up to where each group is committed and applied, the bitmaps of log files
without a segment, the registry.  The end, not the position: what is applied may lie behind a slice
that waits, and what waits may be replaced behind it, so only the whole log says what counts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgpack

if TYPE_CHECKING:
    from meterd.actors.usage import Usage


class Cuts:
    """Requests for a cut that wait for a checkpoint."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._waiting: list[tuple[int, int]] = []  # (request, last record it must cover)

    def ask(self, fields: dict[str, Any]) -> None:
        """Take a request: {id, save}."""
        if not self._usage.serving:
            return  # it is asked again
        if fields["save"]:
            self._waiting.append((fields["id"], self._usage.groups.sequence))
            self._usage.ask_checkpoint()
        else:
            self._answer(fields["id"])

    def answer(self) -> None:
        """Answer those whose checkpoint is durable."""
        saved = self._usage.saved_sequence
        for request, sequence in self._waiting:
            if sequence <= saved:
                self._answer(request)
        self._waiting = [one for one in self._waiting if one[1] > saved]

    def _answer(self, request: int) -> None:
        usage = self._usage
        usage.note_waiting()
        facts = {
            "id": request,
            "taken": time.time_ns(),
            "position": list(usage.read_end),
            "log": usage.groups.packed() | {"sequence": usage.queue.end_sequence},
            "refused": usage.refused.to_map(),
            "registry": usage.state.registry.to_bytes(),
            "horizon": usage.state.horizon,
        }
        usage.send("retention_sweeper", [b"cut", msgpack.packb(facts)])
