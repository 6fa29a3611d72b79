"""Bounds what strangers make the replication listener hold: they are reset.

ZeroMQ bounds a frame but not a message, and nothing of a message is seen before it is whole.  The
kernel knows what has come on each connection, though, and what the listener was given of it is
counted here; the difference is held.  A connection that has brought a good message is a peer's:
peers limit themselves, and may hold what the largest message takes.  All others share a little.

Does not know: what makes a message good.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from meterd.actors.listening import tcp_connections
from meterd.actors.measuring.telemetry import Telemetry
from meterd.protocol.raft_frames import MESSAGE_SIZE_MAX

LOOK_SECONDS: Final = 0.25
# While nobody has come and all that are there are peers, every connection is looked at so often.
SURVEY_SECONDS: Final = 1.0
MIB: Final = 1 << 20
# What a peer's connection may hold: a message, and what has come of the next ones.
PEER_HELD_MAX: Final = MESSAGE_SIZE_MAX + 32 * MIB
# What all connections together may hold that have brought nothing good; a peer's first message
# may be large.
STRANGERS_HELD_MAX: Final = 64 * MIB
# There may be so many, and each may hold more than a little for so long.
STRANGERS_MAX: Final = 64
LITTLE: Final = 64 * 1024
STRANGER_SECONDS_MAX: Final = 15.0
# Bad messages on a connection that has brought no good one.
STRIKES_MAX: Final = 3

logger = logging.getLogger(__name__)


@dataclass
class _Connection:
    key: int  # inode of its socket
    since: float
    received: int = 0
    delivered: int = 0
    good: bool = False
    strikes: int = 0

    @property
    def held(self) -> int:
        return max(0, self.received - self.delivered)


class PeerGuard:
    """Watches the connections that this process has accepted on `port`."""

    def __init__(self, port: int, telemetry: Telemetry) -> None:
        self._port = port
        self._telemetry = telemetry
        self._connections: dict[int, _Connection] = {}  # by descriptor
        self._others: dict[int, int] = {}  # descriptors of anything else, with their inodes
        self._due = self._survey_due = 0.0
        self._count = 0  # of this process's descriptors, at the last survey

    def credit(self, descriptor: int, size: int, good: bool) -> None:
        """Note a message that came on this connection, and whether a peer has sent it."""
        connection = self._connections.get(descriptor)
        if connection is None:
            connection = self._connections[descriptor] = _Connection(0, 0.0)
        connection.delivered += size
        connection.good |= good
        connection.strikes += not good

    def look(self, now: float) -> float:
        """Reset who holds too much, when that is due; return the seconds until the next look."""
        if now < self._due:
            return self._due - now
        self._due = now + LOOK_SECONDS
        descriptors = tcp_connections.descriptors()
        strange = not all(connection.good for connection in self._connections.values())
        if not strange and len(descriptors) == self._count and now < self._survey_due:
            return LOOK_SECONDS
        self._count, self._survey_due = len(descriptors), now + SURVEY_SECONDS
        self._survey(now, descriptors)
        offenders = []
        strangers = []
        for descriptor, connection in self._connections.items():
            if connection.good:
                if connection.held > PEER_HELD_MAX:
                    offenders.append(descriptor)
            elif connection.strikes >= STRIKES_MAX or (
                connection.held > LITTLE and now - connection.since > STRANGER_SECONDS_MAX
            ):
                offenders.append(descriptor)
            else:
                strangers.append((connection.held, descriptor))
        strangers.sort()
        held = sum([held for held, _ in strangers])
        while strangers and (len(strangers) > STRANGERS_MAX or held > STRANGERS_HELD_MAX):
            size, descriptor = strangers.pop()
            held -= size
            offenders.append(descriptor)
        self._reset(offenders)
        return LOOK_SECONDS

    def _survey(self, now: float, descriptors: list[int]) -> None:
        found: dict[int, _Connection] = {}
        others: dict[int, int] = {}
        for descriptor in descriptors:
            key = tcp_connections.inode(descriptor)
            if not key or self._others.get(descriptor) == key:
                others[descriptor] = key
                continue
            connection = self._connections.get(descriptor)
            if connection is None or connection.key not in (0, key):
                connection = _Connection(0, now)
            if not connection.key:
                if not tcp_connections.is_client(descriptor, self._port):
                    others[descriptor] = key
                    continue
                connection.key, connection.since = key, now
            connection.received, _ = tcp_connections.totals(descriptor)
            found[descriptor] = connection
        self._connections, self._others = found, others

    def _reset(self, descriptors: list[int]) -> None:
        count = 0
        for descriptor in descriptors:
            connection = self._connections.pop(descriptor)
            count += tcp_connections.reset(descriptor, connection.key, self._port)
        if count:
            self._telemetry.add("peer_connections_reset_total", count)
            logger.warning("reset %d connections to the replication port", count)
