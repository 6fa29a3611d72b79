"""Splits what ingest has gathered, or a command, by who leads it; the rest of the way is theirs.

A split is known to usage by `split` before anything of it leaves; each of its parts has a token,
under which its outcome comes back.  What this node leads is proposed as ever, what others lead is
forwarded.  Parts that nobody is known to lead are not sent: usage resolves them as not known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from meterd.actors.frames.leader_map import LeaderMap
from meterd.actors.requests.outcomes import (
    Reply,
    Wait,
    encode_command_part,
    encode_origin,
    encode_own_part,
)
from meterd.core.cluster.forwarded import encode_part_origin
from meterd.core.cluster.proposals import slices_of
from meterd.core.staging import Packed, Refusals
from meterd.protocol import log_format

if TYPE_CHECKING:
    from meterd.actors.actor import Actor

# Nobody waits longer for a part than this, whatever deadline the client has named.
PART_SECONDS_MAX = 30.0

# What a part needs to be sent: node, token, meta, payload, what belongs to refused rows.
# `async` in a cluster: it is answered like others, and told how many events were accepted.
Request = tuple[bytes, int, int, Sequence[tuple[int, int]], bool]


class Splitting:
    """Makes tokens; keeps nothing else."""

    def __init__(self, actor: Actor, leaders: LeaderMap) -> None:
        self._actor = actor
        self._leaders = leaders
        self._boot = os.urandom(8)
        self._count = 0

    def _token(self) -> bytes:
        self._count += 1
        return self._boot + self._count.to_bytes(8, "little")

    def events(
        self,
        began: float,
        requests: Sequence[Request],
        parts: Sequence[tuple[int, Packed]],
        registry_version: int,
        seconds: float,
    ) -> None:
        """Hand on the parts of a gathering; usage waits for their outcomes for `seconds`."""
        tokens = [self._token() for _ in parts]
        table = []
        for token, (node, packed) in zip(tokens, parts, strict=True):
            refused = 0 if packed.refusals is None else len(packed.refusals.rows)
            table.append([token, node, groups_of(packed), packed.row_count, refused])
        due = time.monotonic() + min(seconds, PART_SECONDS_MAX)
        origin = encode_origin(began, list(requests), joined([packed for _, packed in parts]))
        self._actor.send("replication", [b"split", msgpack.packb([due, table]), b"events", origin])
        for token, (node, packed) in zip(tokens, parts, strict=True):
            meta = {
                "kind": log_format.EVENTS,
                "slices": packed.slices.data,
                "row_count": packed.row_count,
                "heap_size": packed.heap_size,
                "registry_version": registry_version,
            }
            if node == self._leaders.own:
                own_part = encode_own_part(token, packed)
                if packed.row_count:
                    frames = [b"propose", msgpack.packb(meta), packed.payload, own_part]
                else:
                    frames = [b"judge", own_part]
                self._actor.send("replication", frames)
            elif node:
                origin_of_part = encode_part_origin(
                    packed.request_of_row, packed.row_of_row, packed.refusals
                )
                self._forward(node, token, meta, packed.payload, origin_of_part)

    def whole(
        self,
        began: float,
        requests: Sequence[Request],
        packed: Packed,
        meta: dict[str, Any],
        seconds: float,
    ) -> None:
        """Propose a gathering that this node leads alone; with it goes who waits, and how long."""
        due = time.monotonic() + min(seconds, PART_SECONDS_MAX)
        reply, wait = Reply(0, self._token()), Wait(due, groups_of(packed))
        origin = encode_origin(began, list(requests), packed, reply, wait)
        frames = [b"propose", msgpack.packb(meta), packed.payload, origin]
        self._actor.send("replication", frames)

    def commands(
        self,
        asked: tuple[bytes, int, str],
        proposals: Sequence[tuple[int, dict[str, Any], bytes]],
        seconds: float,
    ) -> None:
        """Hand on commands, (group, meta, payload) each, whose last result answers a request.

        Raises NotLeader, with nothing sent, when one of the groups has no leader that is known.
        """
        nodes = [self._leaders.leader_of(group) for group, _, _ in proposals]
        tokens = [self._token() for _ in proposals]
        table = [
            [token, node, [group], 0, 0]
            for token, node, (group, _, _) in zip(tokens, nodes, proposals, strict=True)
        ]
        due = time.monotonic() + min(seconds, PART_SECONDS_MAX)
        frames = [b"split", msgpack.packb([due, table]), b"commands", msgpack.packb(asked)]
        self._actor.send("replication", frames)
        for token, node, (_, meta, payload) in zip(tokens, nodes, proposals, strict=True):
            if self._leaders.alone or node == self._leaders.own:
                own = encode_command_part(Reply(0, token))
                self._actor.send("replication", [b"propose", msgpack.packb(meta), payload, own])
            else:
                self._forward(node, token, meta, payload, b"")

    def _forward(
        self, node: int, token: bytes, meta: dict[str, Any], payload: Any, refused: bytes
    ) -> None:
        frames = [b"forward", bytes([node]), token, msgpack.packb(meta), payload, refused]
        self._actor.send("replication", frames)


def command_proposal(
    kind: int, groups: Sequence[int], command: dict[str, Any], registry_version: int
) -> tuple[dict[str, Any], bytes]:
    """Return meta and payload of a proposal that is one command, for groups in ascending order."""
    packed: bytes = msgpack.packb(command)
    payload = packed.ljust(log_format.padded(len(packed)), b"\0")
    meta = {
        "kind": kind,
        "slices": bytes(slices_of(groups, payload)),
        "row_count": 0,
        "heap_size": len(packed),
        "registry_version": registry_version,
    }
    return meta, payload


def groups_of(packed: Packed) -> list[int]:
    """Return the groups that a part is about."""
    found = set((packed.slices[:, 0] & np.uint64(0xFFFF)).tolist())
    if packed.refusals is not None:
        found.update(packed.refusals.partitions().tolist())
    return sorted(found)


def joined(parts: Sequence[Packed]) -> Packed:
    """Return where the rows of all parts came from, in the order of the parts; no payload."""
    refused = [packed.refusals for packed in parts if packed.refusals is not None]
    rows = np.concatenate([one.rows for one in refused]) if refused else None
    refusals = None if rows is None else Refusals(rows, np.zeros(0, np.uint8), [])
    return Packed(
        np.zeros(0, np.uint8),
        np.zeros((0, 5), np.uint64),
        sum(packed.row_count for packed in parts),
        0,
        np.concatenate([packed.request_of_row for packed in parts]),
        np.concatenate([packed.row_of_row for packed in parts]),
        refusals,
    )
