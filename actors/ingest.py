"""The ingest actor: decodes requests, stages their rows, proposes one record for many requests.

It keeps nothing between turns but the registry: whoever dies here loses no promise, only requests
that their clients send again.  What it needs to know of a request travels with the proposal (its
*origin*) and comes back to the client from usage.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.actors.actor import BEAT_SECONDS, Actor
from meterd.actors.frames.bundle import bundle, unbundle
from meterd.actors.frames.leader_map import LeaderMap
from meterd.actors.frames.sockets import Frame
from meterd.actors.questions.zone_files import transitions
from meterd.actors.requests.answering import Answers, answer_frames
from meterd.actors.requests.outcomes import encode_origin, nameless_events
from meterd.actors.requests.splitting import Request, Splitting, command_proposal
from meterd.actors.requests.under_way import UnderWay
from meterd.actors.requests.unknown_metrics import UnknownMetrics
from meterd.actors.starting import identity
from meterd.core.cluster.members import OPS as MEMBER_OPS
from meterd.core.staging import Packed, Stage
from meterd.core.state.balance_rows import import_commands
from meterd.core.state.erasures import erasure_command
from meterd.core.state.registry import Registry
from meterd.protocol import log_format
from meterd.protocol.columns import decode_events
from meterd.protocol.envelope import RequestHeader, decode_request_header
from meterd.protocol.errors import (
    REASONS,
    MeterdError,
    RemoteProtocolError,
    UnknownMetric,
    exception_of,
)
from meterd.protocol.messages import check_request
from meterd.protocol.result import IngestResult, encode_result

# Requests of a record after which we take no more of those that wait (as in the router).
PORTION = 32
# Requests of one record at the most; their numbers travel with it.
REQUESTS_PER_RECORD_MAX = 4_096


class Ingest(Actor):
    name = "ingest"

    def open(self) -> None:
        key = identity.read(self.options.node.data_dir).identity_key
        self._key = np.frombuffer(key, np.uint64).copy()
        self._registry = Registry()
        words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
        # What is gathered is split over the nodes that lead: so much for each of them.
        nodes = max(1, len(self.options.node.cluster_nodes))
        self._stage = Stage(self.options.ingest.record_events_max, words, nodes)
        self._answers = Answers(self)
        self._requests: list[Request] = []
        self._accepted: list[bytes] = []  # answers to `async` requests, as frames; of a node alone
        self._patience = 0.0  # seconds that the most patient client of the requests waits
        self._leaders = LeaderMap(self.options)
        self._splitting = Splitting(self, self._leaders)
        self._under_way = UnderWay()  # in a cluster
        self._unknown = UnknownMetrics(self)
        self._began = 0.0  # when the first request of what is staged was taken
        self._serving = False

    def handle(self, frames: list[bytes]) -> None:
        kind = frames[0]
        if kind == b"requests":
            # Without the registry every metric is unknown, and that would be the answer.  What was
            # passed on before our hello the router answers at the hello: send it again.
            if self._serving:
                for rid, raw_header, body in unbundle(frames[1:]):
                    self._on_request(rid, raw_header, body)
        elif kind == b"decided":
            self._under_way.decided(int.from_bytes(frames[1], "little"))
        elif kind == b"registry":
            self.take_registry(frames)
        elif kind == b"leaders":
            self._leaders.take(frames)
        elif kind == b"fresh_registry":
            self._unknown.fresh(frames)
        elif kind == b"no_registry":
            self._unknown.failed(exception_of(msgpack.unpackb(frames[1])))
        elif kind == b"hello" and self._serving:  # the router has started after us
            self._say_hello()

    def _say_hello(self) -> None:
        """Tell the router that the chain serves, and by the process id whether it is a new one."""
        self.send("router", [b"hello", self.name.encode(), str(os.getpid()).encode()])

    def enough(self) -> bool:
        """Propose in portions, so that the disk and usage work while we decode the next."""
        return (len(self._requests) >= PORTION and not self._waits()) or self._stage.full

    def flush(self) -> None:
        if self._stage.full or not self._waits():
            self._propose()
        else:
            self.tick_by(self._under_way.until(self._stage.count))
        self._answers.send()

    def tick(self, now: float) -> float:
        if not self._stage.empty:
            self.flush()
        if self._stage.empty:
            return BEAT_SECONDS
        return max(0.0, self._under_way.until(self._stage.count) - now)

    def _waits(self) -> bool:
        """Is enough under way to other nodes, so that what comes is better gathered further?"""
        if self._leaders.alone or self.stopping:
            return False
        return self._under_way.full(time.monotonic(), self._stage.count)

    def drained(self) -> bool:
        self._propose()
        return True

    def take_registry(self, frames: Sequence[Frame]) -> None:
        """Take over the registry, then pass on the answers that promise it."""
        self._propose()  # what is staged was numbered by the old one
        self._registry = Registry.from_bytes(frames[1])
        self._stage.use(self._registry)
        for answer in unbundle(frames[2:]):
            self._answers.add(answer)
        if not self._serving:
            self._serving = True
            self._say_hello()
            self.ready()

    def _on_request(self, rid: bytes, raw_header: bytes, body: Frame) -> None:
        # The router has checked the header.  A node alone knows what there is to know.
        header = decode_request_header(raw_header)
        self.take_request(rid, header, body, certain=self._leaders.alone)

    def take_request(self, rid: bytes, header: RequestHeader, body: Frame, certain: bool) -> None:
        """Do what a request asks for; certain: a metric that the registry lacks there is not."""
        try:
            try:
                self._take(rid, header, body, certain)
            except UnknownMetric:
                if certain:
                    raise
                self._unknown.hold(rid, header, body)
        except MeterdError as error:
            self.refuse(rid, header, error)

    def refuse(self, rid: bytes, header: RequestHeader, error: MeterdError) -> None:
        """Answer a request with an error."""
        self._answers.error(rid, header.id, header.kind, error)

    def _take(self, rid: bytes, header: RequestHeader, body: Frame, certain: bool) -> None:
        if header.kind == "ingest":
            self._on_events(rid, header, body, certain)
        elif header.kind in ("account_erase", "balance_import"):
            self._on_account(rid, header, body)
        elif header.kind in MEMBER_OPS:
            self._on_members(rid, header, body)
        else:
            self._on_metric(rid, header, body)

    def _on_events(self, rid: bytes, header: RequestHeader, body: Frame, certain: bool) -> None:
        if self._stage.full or len(self._requests) >= REQUESTS_PER_RECORD_MAX:
            self._propose()
        if not self._requests:
            self._began = time.monotonic()
        whole = None
        if header.lz4_size is None:
            whole = self._stage.add_body(body, len(self._requests))
        if whole is None:
            self._on_other_events(rid, header, body, certain)
            return
        count, durability = whole
        self._add_request(rid, header, count, [], durability)

    def _on_other_events(
        self, rid: bytes, header: RequestHeader, body: Frame, certain: bool
    ) -> None:
        """Take a request that is not of the usual form, or that has a row which is not right.

        Raises UnknownMetric where that is not certain.
        """
        columns = decode_events(body, header.lz4_size)
        faults = self._stage.add(columns, len(self._requests), certain)
        if faults is None:  # it may fit into an empty stage
            self._propose()
            self._began = time.monotonic()
            faults = self._stage.add(columns, 0, certain)
        if faults is None:
            raise RemoteProtocolError("too_large", "the events, written out, exceed a record")
        if faults:
            told = msgpack.packb(nameless_events(columns, faults))
            self.send("retention_sweeper", [b"refused_events", told])
        if len(faults) == columns.count:  # no event has an identity: nothing of it goes further
            self._count_rejected(columns.count, faults)
            answer = _accepted(header, columns.count, faults)
            self._answers.add([rid, *answer])
        else:
            self._add_request(rid, header, columns.count, faults, columns.durability)

    def _add_request(
        self,
        rid: bytes,
        header: RequestHeader,
        count: int,
        faults: list[tuple[int, int]],
        durability: str,
    ) -> None:
        """Note whose rows have been staged; a node alone answers `async` before they are stored."""
        self._patience = max(self._patience, header.deadline_ms / 1000)
        accepts = durability == "async"
        if accepts and self._leaders.alone:
            refused = faults + self._stage.refused_rows(len(self._requests))
            self._accepted += [rid, *_accepted(header, count, refused)]
            rid = b""
        self._requests.append((rid, header.id, count, faults, accepts))

    def _count_rejected(self, count: int, faults: list[tuple[int, int]]) -> None:
        self.telemetry.add("events_received_total", count)
        for _, reason in faults:
            self.telemetry.add(f'events_rejected_total{{reason="{REASONS[reason]}"}}')

    def _on_metric(self, rid: bytes, header: RequestHeader, body: Frame) -> None:
        fields = check_request(header.kind, body, header.lz4_size)
        if header.kind == "metric_put":
            definition = fields["definition"]
            command = {
                "op": "metric_put",
                "definition": definition.to_map(),
                "transitions": transitions(definition.period.timezone),
                "replace": fields["replace"],
            }
        else:
            command = {"op": "metric_delete", "code": fields["code"]}
        self._commands(log_format.META, {log_format.META_GROUP: command}, rid, header)

    def _on_members(self, rid: bytes, header: RequestHeader, body: Frame) -> None:
        """Log a change of who belongs to the cluster; the state machine says whether it may be."""
        command = {"op": header.kind, **check_request(header.kind, body, header.lz4_size)}
        self._commands(log_format.META, {log_format.META_GROUP: command}, rid, header)

    def _on_account(self, rid: bytes, header: RequestHeader, body: Frame) -> None:
        """Log what concerns accounts in their partitions; the last of the commands is answered."""
        fields = check_request(header.kind, body, header.lz4_size)
        if header.kind == "account_erase":
            name = fields["id"] or os.urandom(16).hex()
            command, partition = erasure_command(
                self._key, fields["account"], fields["subtree"], name
            )
            commands = {partition: command}
        else:
            commands = import_commands(fields["id"], fields["balances"], self._registry, self._key)
        self._commands(log_format.ACCOUNT, commands, rid, header)

    def _commands(
        self, kind: int, commands: dict[int, dict[str, Any]], rid: bytes, header: RequestHeader
    ) -> None:
        """Propose commands, one in each of these groups, ordered after what came before them."""
        self._propose()
        asked = (rid, header.id, header.kind)
        proposals = [
            (group, *command_proposal(kind, [group], command, self._stage.registry_version))
            for group, command in sorted(commands.items())
        ]
        if len(proposals) == 1 and self._leaders.alone:
            ((_, meta, payload),) = proposals
            self._send(meta, payload, msgpack.packb([asked]))
        else:
            self._splitting.commands(asked, proposals, header.deadline_ms / 1000)

    def _propose(self) -> None:
        """Pack what is staged into one proposal."""
        if self._stage.empty:
            return
        if not self._leaders.alone:
            self._under_way.add(time.monotonic())
        if self._leaders.all_mine:
            self._propose_whole(self._stage.pack())
        else:
            self._propose_by_leader(self._stage.pack_parts(self._leaders.nodes))
        self._requests, self._accepted, self._patience = [], [], 0.0

    def _propose_by_leader(self, parts: list[tuple[int, Packed]]) -> None:
        """Propose what this node leads, and hand on the rest."""
        node, packed = parts[0]
        if len(parts) > 1 or node != self._leaders.own or not packed.row_count:
            self._propose_parts(parts)
            return
        meta = self._meta(packed)
        self._splitting.whole(self._began, self._requests, packed, meta, self._patience)

    def _meta(self, packed: Packed) -> dict[str, Any]:
        return {
            "kind": log_format.EVENTS,
            "slices": packed.slices.data,
            "row_count": packed.row_count,
            "heap_size": packed.heap_size,
            "registry_version": self._stage.registry_version,
        }

    def _propose_whole(self, packed: Packed) -> None:
        """Propose what this node leads alone."""
        meta = self._meta(packed)
        origin = encode_origin(self._began, self._requests, packed)
        self._count_accepted()
        if packed.row_count:
            self._send(meta, packed.payload, origin)
        else:  # nothing to log: only to be judged
            self._answers.add(self._accepted)
            self.send("replication", [b"judge", origin])

    def _propose_parts(self, parts: list[tuple[int, Packed]]) -> None:
        """Hand the parts on to their leaders."""
        version = self._stage.registry_version
        self._splitting.events(self._began, self._requests, parts, version, self._patience)

    def _count_accepted(self) -> None:
        if self._accepted:
            seconds, count = time.monotonic() - self._began, len(self._accepted) // 3
            self.telemetry.observe('ingest_duration_seconds{mode="async"}', seconds, count)

    def _send(
        self, meta: dict[str, Any], payload: bytes | NDArray[np.uint8], origin: bytes
    ) -> None:
        accepted = bundle(self._accepted) if self._accepted else []
        frames = [b"propose", msgpack.packb(meta), payload, origin, *accepted]
        self.send("replication", frames)


def _accepted(header: RequestHeader, count: int, refused: list[tuple[int, int]]) -> list[bytes]:
    """Return the answer to a request that does not wait for its events to be stored."""
    items = [(row, "rejected", REASONS[reason]) for row, reason in sorted(refused)]
    taken = count - len(refused)
    result = IngestResult(count, rejected=len(refused), accepted=taken, items=items)
    return answer_frames(header.id, header.kind, encode_result(result))
