"""The replication actor: proposals become records, in this node's and in other nodes' logs.

It hands every record to the WAL-writer (to make durable) and to usage (which unpacks it while the
disk works).  When nobody else need have a record it says so to the WAL-writer, which then tells
usage itself that it is committed: one hop less.  All deciding is in `core/replicas.py`.

States: waiting for the log → electing (groups that need nobody else lead themselves; proposals
wait) → serving.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from meterd.actors import identity
from meterd.actors.actor import BEAT_SECONDS, Actor
from meterd.actors.forwarding import Forwarding
from meterd.actors.sockets import Frame
from meterd.core.group_logs import unpack
from meterd.core.proposals import Proposal
from meterd.core.raft.events import Refused
from meterd.core.replicas import Clock, Replicas, Step
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.raft_messages import Envelope

# Who must know who leads.
ROUTING = ("router", "ingest", "usage")

logger = logging.getLogger(__name__)


class Replication(Actor):
    name = "replication"

    _replicas: Replicas | None = None  # until the log is open

    def open(self) -> None:
        self._who = identity.read(self.options.node.data_dir)
        self._held: deque[list[bytes]] = deque()  # bounded by what the router admits
        self._serving = False
        self._leaders_told = b""
        self.forwarding = Forwarding(self, self.send_bulk, self.handle)

    def send_bulk(self, node: int, frames: Sequence[Frame]) -> bool:
        """Send frames to another node; False when that cannot be done now."""
        return False

    @property
    def replicas(self) -> Replicas:
        """Raises InvariantViolation before the log is open."""
        if self._replicas is None:
            raise InvariantViolation("replication was asked before the log was open")
        return self._replicas

    def handle(self, frames: list[bytes]) -> None:
        kind = frames[0]
        if kind == b"propose":
            if self._serving:
                self._on_propose(frames)
            else:
                self._held.append(frames)
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
        elif kind == b"applied":
            groups = np.frombuffer(frames[1], np.uint16).astype(np.int64)
            index = np.frombuffer(frames[2], np.uint64).astype(np.int64)
            self._carry_out(self.replicas.applied(groups, index, _clock()))
        elif kind == b"opened":
            self._on_opened(frames)
        elif kind == b"hello":
            self._leaders_told = b""  # somebody has started anew

    def flush(self) -> None:
        self._tell_leaders()

    def _on_opened(self, frames: list[bytes]) -> None:
        """The log is open: continue every group where it ends, and have usage replay it."""
        end = msgpack.unpackb(frames[1], strict_map_key=False)
        starts = unpack(msgpack.unpackb(frames[2], strict_map_key=False))
        self._replicas = Replicas(
            starts,
            _clock(),
            cluster=int.from_bytes(self._who.cluster_id, "little"),
            member=self._who.member,
            sequence=end["sequence"],
            leader_time=end["leader_time"],
            random=random.Random(),
        )
        self.send("usage", [b"replay", frames[1]])
        self._carry_out(self._replicas.tick(_clock()))
        self._maybe_serve()

    def _maybe_serve(self) -> None:
        """Serve once every group leads itself that can; take what has waited for that."""
        if self._serving or not self.replicas.opened:
            return
        self._serving = True
        self._tell_leaders()
        self.ready()
        while self._held:
            self._on_propose(self._held.popleft())

    def _on_propose(self, frames: list[bytes]) -> None:
        """Order one proposal; its frames are named in docs/ARCHITECTURE.md."""
        _, meta, payload, origin, *accepted = frames
        fields = msgpack.unpackb(meta)
        fields["slices"] = bytearray(fields["slices"])
        proposal = Proposal(payload=payload, **fields)
        step = self.replicas.propose(proposal, origin, _clock())
        self._carry_out(step)
        if not step.appends:
            self._refuse(proposal.kind, step.refused[0], origin)
        if accepted:
            self.send("router", [b"answers", *accepted])

    def _refuse(self, kind: int, refused: Refused, origin: bytes) -> None:
        """Have a proposal answered of which nothing was taken."""
        fields = {"kind": kind, "reason": refused.reason, "leader": refused.leader}
        self.send("usage", [b"refused", msgpack.packb(fields), origin])

    def _on_durable(self, frames: list[bytes]) -> None:
        """The WAL-writer has made records durable."""
        sequence = int(np.frombuffer(frames[1], np.uint64)[-4])
        step = self.replicas.durable(sequence, _clock())
        if step is not None:
            self._carry_out(step)
            self._maybe_serve()

    def _carry_out(self, step: Step) -> None:
        """Do what a step leads to."""
        for append in step.appends:
            sequence = append.sequence.to_bytes(8, "little")
            kind = b"append_commit" if append.commits else b"append"
            self.send("wal_writer", [kind, sequence, append.head, append.payload])
            origin = append.cause or b""
            self.send("usage", [b"record", sequence, append.head, append.payload, origin])
        for peer, envelope in step.envelopes:
            self._send_envelope(peer, envelope)
        groups, index = step.committed
        if len(groups):
            columns = [groups.astype(np.uint16), index.astype(np.uint64)]
            self.send("usage", [b"committed", *columns])
        for action in step.actions:
            self._act(action)

    def _send_envelope(self, peer: int, envelope: Envelope) -> None:
        """Send a member of other nodes what is for it; a node that is alone has none."""

    def _act(self, action: Any) -> None:
        """Do what the engine asks for besides; nothing yet: snapshots, reads, reading back."""

    def _tell_leaders(self) -> None:
        """Say who leads each group, when that has changed."""
        if not self._serving:
            return
        leaders = self.replicas.leaders.tobytes()
        if leaders != self._leaders_told:
            self._leaders_told = leaders
            version = self.replicas.map_version.to_bytes(8, "little")
            for actor in ROUTING:
                self.send(actor, [b"leaders", version, leaders])

    def tick(self, now: float) -> float:
        if self._replicas is None:
            return BEAT_SECONDS
        clock = _clock()
        if clock.now >= self._replicas.deadline:
            self._carry_out(self._replicas.tick(clock))
        self._tell_leaders()
        wait = (self._replicas.deadline - clock.now) / 1000
        return min(BEAT_SECONDS, max(0.0, wait))

    def drained(self) -> bool:
        return self._replicas is None or not (self._held or self._replicas.waiting)


def _clock() -> Clock:
    return Clock(time.monotonic_ns() // 1_000_000, time.time_ns())
