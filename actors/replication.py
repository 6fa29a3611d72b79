"""The replication actor: proposals from ingest become records; durable records are committed.

It hands every record to the WAL-writer (to make durable) and to usage (which unpacks it while the
disk works).  When nobody else need have a record it says so to the WAL-writer, which then tells
usage itself that it is committed: one hop less.  All deciding is in `core.replica`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgpack
import numpy as np

from meterd.actors import identity
from meterd.actors.actor import Actor
from meterd.actors.forwarding import Forwarding
from meterd.actors.leaders import number_of
from meterd.actors.sockets import Frame
from meterd.core.log_scan import Groups
from meterd.core.replica import Proposal, Replica
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.log_format import GROUP_COUNT


class Replication(Actor):
    name = "replication"

    _replica: Replica | None = None  # until the log is open

    def open(self) -> None:
        self.forwarding = Forwarding(self, self.send_bulk, self.handle)

    def send_bulk(self, node: int, frames: Sequence[Frame]) -> bool:
        """Send frames to another node; False when that cannot be done now."""
        return False

    def handle(self, frames: list[bytes]) -> None:
        kind = frames[0]
        if kind == b"propose":
            self._on_propose(frames)
        elif kind == b"judge":
            self.send("usage", frames)  # in the order of the records
        elif kind == b"split":
            self.forwarding.on_split(frames)
        elif kind == b"forward":
            self.forwarding.on_forward(frames)
        elif kind == b"outcome":
            self.forwarding.on_outcome(frames)
        elif kind == b"durable":
            self._on_durable(frames)
        elif kind == b"opened":
            self._on_opened(frames)

    def _on_opened(self, frames: list[bytes]) -> None:
        """The log is open: continue every group where it ends, and have usage replay it."""
        end = msgpack.unpackb(frames[1], strict_map_key=False)
        groups = Groups.unpacked(end)
        self._replica = Replica(groups)
        self.send("usage", [b"replay", frames[1]])
        every = np.arange(GROUP_COUNT, dtype=np.uint16)
        self.send("usage", [b"committed", every.tobytes(), groups.index.tobytes()])
        leaders = (
            bytes([number_of(identity.read(self.options.node.data_dir).node_id)]) * GROUP_COUNT
        )
        self.send("usage", [b"leaders", (1).to_bytes(8, "little"), leaders])
        self.ready()

    def _on_propose(self, frames: list[bytes]) -> None:
        """Order one proposal; its frames are named in docs/ARCHITECTURE.md."""
        if self._replica is None:
            raise InvariantViolation("a proposal came before the log was open")
        _, meta, payload, origin, *accepted = frames
        fields = msgpack.unpackb(meta)
        fields["slices"] = bytearray(fields["slices"])
        append = self._replica.propose(Proposal(payload=payload, **fields), time.time_ns())
        sequence = append.sequence.to_bytes(8, "little")
        kind = b"append_commit" if append.commits else b"append"
        self.send("wal_writer", [kind, sequence, append.head, payload])
        self.send("usage", [b"record", sequence, append.head, payload, origin])
        if accepted:
            self.send("router", [b"answers", *accepted])

    def _on_durable(self, frames: list[bytes]) -> None:
        """The WAL-writer has made records durable, and usage knows that they are committed."""
        if self._replica is None:
            raise InvariantViolation("a record is durable that was never appended")
        self._replica.durable(np.frombuffer(frames[1], np.uint64).reshape(-1, 4)[:, 0])

    def drained(self) -> bool:
        return self._replica is None or self._replica.waiting == 0
