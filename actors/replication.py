"""The replication actor: proposals from ingest become records; durable records are committed.

It hands every record to the WAL-writer (to make durable) and to usage (which unpacks it while the
disk works) and tells usage when it is committed.  All deciding is in `core.replica`.
"""

from __future__ import annotations

import time

import msgpack
import numpy as np

from meterd.actors.actor import Actor
from meterd.actors.answering import send_answers
from meterd.core.replica import GROUP_COUNT, Append, Groups, Proposal, Replica
from meterd.protocol import log_format

# Origin flag of a request that does not wait for stable storage.
ASYNC = 1


class Replication(Actor):
    name = "replication"

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._replica: Replica | None = None

    def handle(self, frames: list[bytes]) -> None:
        kind = frames[0]
        if kind == b"propose":
            self._on_propose(frames)
        elif kind == b"durable":
            self._on_durable(frames)
        elif kind == b"opened":
            self._on_opened(msgpack.unpackb(frames[1], strict_map_key=False))

    def _on_opened(self, end: dict[str, object]) -> None:
        """The log is open: continue every group where it ends, and have usage replay it."""
        groups = Groups()
        for group, (term, index, digest) in end["groups"].items():  # type: ignore[attr-defined]
            if not 0 <= group < GROUP_COUNT:
                continue
            groups.term[group], groups.index[group] = term, index
            groups.digest[group] = np.frombuffer(digest, np.uint64)
        self._replica = Replica(groups, int(end["leader_time"]), int(end["sequence"]))  # type: ignore[call-overload]
        self.send("usage", [b"replay", msgpack.packb(end)])
        self.ready()

    def _on_propose(self, frames: list[bytes]) -> None:
        """Order one proposal: frames are named in docs/ARCHITECTURE.md."""
        if self._replica is None:
            return  # ingest repeats nothing: its requests are answered `restarting`
        _, meta, slices, payload, origin, *rest = frames
        fields = msgpack.unpackb(meta)
        append = self._replica.propose(Proposal(slices=bytearray(slices), payload=payload, **fields), time.time_ns())
        self._forward(append, [origin, *rest])
        accepted = msgpack.unpackb(origin).get("accepted")
        if accepted:
            send_answers(self, accepted)

    def _forward(self, append: Append, origin: list[bytes]) -> None:
        sequence = append.sequence.to_bytes(8, "little")
        payload = bytes(append.payload) if isinstance(append.payload, memoryview) else append.payload
        self.send("wal_writer", [b"append", sequence, append.head, payload])
        self.send("usage", [b"record", sequence, append.head, payload, *origin])

    def _on_durable(self, frames: list[bytes]) -> None:
        assert self._replica is not None, "nothing was appended"
        self._replica.durable(np.frombuffer(frames[1], np.uint64).reshape(-1, 4)[:, 0])
        self.send("usage", [b"commit", frames[1]])

    def drained(self) -> bool:
        return self._replica is None or self._replica.waiting == 0


__all__ = ["ASYNC", "Replication", "log_format"]
