"""The client connections of a listener: who is there, what each has sent and was given, who goes.

`survey` reads the kernel's totals of every connection, some microseconds each, so it is called
about once a second and on alarm.  Between two surveys the table only counts messages.  A message
can come from a connection that is gone already, under a descriptor that has a new one: the survey
tells them apart by inode (`Connection.successor`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from meterd.actors.listening import tcp_connections
from meterd.actors.measuring.telemetry import Telemetry
from meterd.core import eviction
from meterd.core.eviction import Connection

# What ZeroMQ takes for a connection: accepted only, and after the handshake (measured).
CONNECTION_SIZE_ACCEPTED = 4_000
CONNECTION_SIZE = 29_000
# What the kernel takes ahead of the process, of a client that has sent a well-formed request:
# enough for 6 MB/s over 20 ms.
BUFFER_SIZE = 128 * 1024
# Malformed messages on one connection: its client does not learn from errors.
STRIKES_MAX = 3
# ZeroMQ's thread closes what was reset at once, unless it is very busy.
LEAVING_SECONDS_MAX = 0.1

MESSAGE_SIZE, MEMORY, SURPLUS, MALFORMED, FRAMES = (
    "message_size",
    "memory",
    "surplus",
    "malformed",
    "frames",
)

logger = logging.getLogger(__name__)


class ConnectionTable:
    """The connections that this process has accepted on `port`, at most `count_max`."""

    def __init__(self, port: int, count_max: int, telemetry: Telemetry) -> None:
        self._port = port
        self._count_max = count_max
        self._telemetry = telemetry
        self._connections: dict[int, Connection] = {}  # by descriptor
        self._others: dict[int, int] = {}  # descriptors of anything else, with their inodes
        self._leaving: dict[int, int] = {}  # reset and not yet closed, with their inodes
        self._leaving_until: float | None = None
        self._reset_counts: Counter[str] = Counter()  # by reason, not yet logged
        self.outcasts: set[bytes] = set()  # routing ids whose messages deserve no answer
        self.memory = 0  # that ZeroMQ takes for these connections, without what they hold
        self.suspect = 0  # bytes, at the last survey
        self.earned = 0  # bytes held that are not suspect

    def credit(self, descriptor: int, rid: bytes, size: int) -> None:
        """Note a message of `size` from this connection, which has this routing id."""
        connection = self._connections.get(descriptor)
        if connection is None:
            connection = self._connections[descriptor] = Connection(0)
        if connection.rid != rid:
            connection.strikes = 0  # they were another client's
        connection.rid = rid
        connection.delivered += size

    def answered(self, descriptor: int, size: int, now: float) -> None:
        """Note that ZeroMQ has taken an answer of `size` to this connection."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.answer(size, now)

    def strike(self, descriptor: int) -> bool:
        """Note a malformed message; return whether it was one too many."""
        connection = self._connections.get(descriptor)
        if connection is None:
            return False
        key = self._leaving.get(descriptor)
        if key is not None and key == tcp_connections.inode(descriptor):
            return False
        connection.strikes += 1
        return connection.strikes >= STRIKES_MAX and self.cut([descriptor], MALFORMED) > 0

    def survey(self, now: float) -> bool:
        """Learn who is there and what each holds; end those that cannot be right.

        Returns whether somebody has to be looked at again at once.
        """
        found = {}
        offenders = []
        urgent = False
        self.memory = 0
        for descriptor in tcp_connections.descriptors():
            key = tcp_connections.inode(descriptor)
            if not key or not self._is_client(descriptor, key):
                continue
            connection = self._connections.get(descriptor, Connection(key))
            if connection.key != key:
                connection = connection.successor(key)
            found[descriptor] = connection
            if self._observe(descriptor, connection, now):
                offenders.append(descriptor)
            urgent |= connection.overfull
            if connection.delivered and not connection.strikes and not connection.wide:
                tcp_connections.widen(descriptor, BUFFER_SIZE)
                connection.wide = True
            silent = connection.received < eviction.GREETING_SIZE
            self.memory += CONNECTION_SIZE_ACCEPTED if silent else CONNECTION_SIZE
        self._connections = found
        self.cut(offenders, MESSAGE_SIZE)
        self.cut(eviction.surplus(found, self._count_max), SURPLUS)
        self.suspect = sum(connection.suspect for connection in found.values())
        self.earned = sum(connection.held for connection in found.values()) - self.suspect
        self._telemetry.set("clients_connected", len(found))
        return urgent

    def report(self) -> None:
        """Say who was reset since the last time."""
        for reason, count in self._reset_counts.items():
            logger.warning("reset %d client connections: %s", count, reason)
        self._reset_counts.clear()

    def _is_client(self, descriptor: int, key: int) -> bool:
        if self._leaving.get(descriptor) == key or self._others.get(descriptor) == key:
            return False
        known = self._connections.get(descriptor)
        if known is not None and known.key == key:
            return True
        if tcp_connections.is_client(descriptor, self._port):
            return True
        self._others[descriptor] = key
        return False

    def _observe(self, descriptor: int, connection: Connection, now: float) -> bool:
        received, acknowledged = tcp_connections.totals(descriptor)
        waiting = 0
        if received - connection.delivered > eviction.HELD_SIZE_MAX:
            waiting = tcp_connections.waiting(descriptor)
        return connection.observe(received, acknowledged, waiting, now)

    def relieve(self, cost: int, budget: int, earned: bool = False) -> int:
        """Cut those with most suspect bytes until the rest, each at `cost`, is within `budget`.

        With `earned` all bytes held count.  Returns how many were cut.
        """
        held = {
            descriptor: connection.held if earned else connection.suspect
            for descriptor, connection in self._connections.items()
        }
        allowed = eviction.allowance(sum(held.values()), cost, budget)
        return self.cut(eviction.choose(held, allowed), MEMORY)

    def cut(self, descriptors: Iterable[int], reason: str) -> int:
        """Reset connections; ZeroMQ's thread frees what they held.  Returns how many there were."""
        count = 0
        for descriptor in descriptors:
            connection = self._connections.pop(descriptor, None)
            if connection is None:
                continue
            key = connection.key or tcp_connections.inode(descriptor)
            if tcp_connections.reset(descriptor, key, self._port):
                self._leaving[descriptor] = key
                self.outcasts.add(connection.rid)
                count += 1
        if count:
            self._telemetry.add(f'connections_evicted_total{{reason="{reason}"}}', count)
            self._reset_counts[reason] += count
        return count

    def some_leave(self, now: float) -> bool:
        """Has ZeroMQ still to close connections that were reset?"""
        if self._leaving and self._leaving_until is None:
            self._leaving_until = now + LEAVING_SECONDS_MAX
        self._leaving = {
            descriptor: key
            for descriptor, key in self._leaving.items()
            if now < (self._leaving_until or now) and tcp_connections.inode(descriptor) == key
        }
        if not self._leaving:
            self._leaving_until = None
        return bool(self._leaving)
