"""Guards the memory of the client listener: watches what clients hold and ends those that abuse it.

ZeroMQ bounds a frame but not a message, and counts messages only once they are whole.  The guard
looks at the process's resident memory every few milliseconds, which costs next to nothing.  When
that has grown more than explained, it asks the kernel how much each connection has sent, compares
with what the router was given from it, and resets those that hold most (`core.eviction`).  About
once a second it does so anyway, for connections that hold more than any legal message, and for
their number.

An alarm acts at the second look, after the router has taken what waits: a message that has just
become whole is no longer held.  What connections that were reset held is still in the memory
until ZeroMQ has let go of them; until then a held byte is taken to cost what it did.  Then
the freed memory is returned to the system, and the guard judges anew.

The descriptor a message came from is its transport's property; messages of peers so old that they
have none (ZMTP before 3.0) are credited to nobody, so such a peer does not last.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import zmq

from meterd.actors import tcp_connections
from meterd.actors.telemetry import Telemetry
from meterd.core import eviction
from meterd.core.eviction import FRAME_OVERHEAD, Connection
from meterd.protocol import limits

MIB = 1 << 20
# Memory that clients may hold together in suspect bytes, beyond `CONNECTION_SIZE` each.
BUDGET = 12 * MIB
# And in earned ones.
EARNED_MAX = 64 * MIB
# An idle connection in ZeroMQ: session, engine, pipes, buffers (measured: 28.6 KB).
CONNECTION_SIZE = 29_000
# A request in flight is in this process as the router's frames and as those on their way.
COPIES_OF_REQUEST = 2
# Beyond this the guard acts even if free memory may be the reason, because it must not trim yet.
UNTRIMMED_GROWTH_MAX = 2 * BUDGET
# From here on connections are surveyed often, so that an alarm finds fresh totals.
WATCH_GROWTH = BUDGET // 2

# A transport takes up to 1 GB/s from its peers, so these seconds decide how far the memory goes
# before the guard acts; each look costs a wake-up of the actor, so these decide its idle load.
LOOK_QUIET_SECONDS = 0.02
LOOK_BUSY_SECONDS = 0.005
# How long a change of the memory by this size keeps the guard busy.
BUSY_SECONDS = 0.5
BUSY_CHANGE = 256 * 1024
SURVEY_SECONDS = 1.0
# Surveys and trims may each take one part in so many of the time.
SHARE_OF_TIME = 5
# ZeroMQ's thread closes what was reset at once, unless it is very busy.
LEAVING_SECONDS_MAX = 0.1

# Header, body and one more that shows the fault; the rest of a message is dropped.
FRAMES_KEPT = limits.FRAME_COUNT + 1
# A message with more frames is no mistake.
FRAMES_MAX = 64
# What the router takes between two looks: some milliseconds of work.  A thousand requests fit in.
FRAMES_BETWEEN_LOOKS_MAX = 4_096
BYTES_BETWEEN_LOOKS_MAX = 32 * MIB
# Malformed messages on one connection.
STRIKES_MAX = 16

MESSAGE_SIZE, MEMORY, SURPLUS, MALFORMED, FRAMES = EVICTION_REASONS = (
    "message_size",
    "memory",
    "surplus",
    "malformed",
    "frames",
)

logger = logging.getLogger(__name__)


class ListenerGuard:
    """Watches the connections that one process has accepted on `port`."""

    def __init__(self, port: int, connections_max: int, telemetry: Telemetry) -> None:
        self._port = port
        self._connections_max = connections_max
        self._telemetry = telemetry
        self._memory = tcp_connections.ProcessMemory()
        self._connections: dict[int, Connection] = {}  # by descriptor
        self._others: dict[int, int] = {}  # descriptors of anything else, with their inodes
        self._leaving: dict[int, int] = {}  # reset and not yet closed, with their inodes
        self._leaving_until = 0.0
        self._calm = self._memory.resident()  # what the process takes without its clients
        self._resident = self._calm
        self._busy_until = 0.0
        self._survey_due = 0.0
        self._survey_not_before = 0.0
        self._trim_not_before = 0.0
        self._alarmed = False
        self._trim_wanted = False
        self._cost = 1  # memory behind a held byte, when that was last judged

        self.source = -1  # descriptor of the last message
        self._frame_count = 0  # of the last message
        self._frames_left = FRAMES_BETWEEN_LOOKS_MAX
        self._bytes_left = BYTES_BETWEEN_LOOKS_MAX

    # Messages

    def receive(self, socket: zmq.Socket[bytes]) -> list[bytes]:
        """Take one message, at most a frame more than is legal.

        Raises zmq.Again when there is none, or when it is time to look first.
        """
        if self._frames_left < 0 or self._bytes_left < 0:
            raise zmq.Again
        frames = [socket.recv(zmq.NOBLOCK)]
        frame: Any = socket.recv(zmq.NOBLOCK, False)
        self.source = descriptor = frame.get(zmq.SRCFD)
        frames.append(frame.bytes)
        size = len(frames[1]) + FRAME_OVERHEAD
        count = 1
        while frame.more:
            frame = socket.recv(zmq.NOBLOCK, False)
            count += 1
            size += len(frame) + FRAME_OVERHEAD
            if count <= FRAMES_KEPT:
                frames.append(frame.bytes)
        connection = self._connections.get(descriptor)
        if connection is None:
            connection = self._connections[descriptor] = Connection(0)
        connection.delivered += size
        self._frame_count = count
        self._frames_left -= count
        self._bytes_left -= size
        return frames

    def answered(self, descriptor: int, frames: list[bytes]) -> None:
        """Note that the transport has taken an answer to this connection."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.answered += sum(map(len, frames))

    def strike(self) -> None:
        """Note that the last message was malformed, and that its sender is still there."""
        connection = self._connections.get(self.source)
        if connection is None or self.source in self._leaving:
            return
        connection.strikes += 1
        if self._frame_count > FRAMES_MAX:
            self._cut([self.source], FRAMES)
        elif connection.strikes >= STRIKES_MAX:
            self._cut([self.source], MALFORMED)

    # Looks

    def look(self, now: float, in_flight: int) -> float:
        """Act on what clients hold, given the bytes of requests in flight.

        Returns the seconds until the next look.
        """
        self._frames_left = FRAMES_BETWEEN_LOOKS_MAX
        self._bytes_left = BYTES_BETWEEN_LOOKS_MAX
        growth = self._growth(in_flight)
        leaving = self._some_leave() and now < self._leaving_until
        if self._trim_wanted and not leaving:
            growth = self._trimmed_growth(now, in_flight)
        if growth <= BUDGET:
            self._alarmed = False
            watched = growth > WATCH_GROWTH and now >= self._survey_not_before
            if watched or now >= self._survey_due:
                self._survey(now)
                self._absorb(growth)
        elif not self._alarmed:
            self._alarmed = True
            return 0.0  # the router takes what waits, then the guard judges
        elif leaving:
            self._survey(now)
            self._relieve()
        else:
            self._judge(now, in_flight)
        return self._pause(now)

    def close(self) -> None:
        self._memory.close()

    def _growth(self, in_flight: int) -> int:
        """Return how much memory has grown beyond what requests and connections explain."""
        resident = self._memory.resident()
        if abs(resident - self._resident) > BUSY_CHANGE:
            self._busy_until = time.monotonic() + BUSY_SECONDS
        self._resident = resident
        self._calm = min(self._calm, resident)
        explained = COPIES_OF_REQUEST * in_flight + CONNECTION_SIZE * len(self._connections)
        return resident - self._calm - explained

    def _pause(self, now: float) -> float:
        busy = self._alarmed or self._trim_wanted or now < self._busy_until
        return LOOK_BUSY_SECONDS if busy else LOOK_QUIET_SECONDS

    def _trimmed_growth(self, now: float, in_flight: int) -> int:
        """Return the growth without memory that is free but still kept, where affordable."""
        if now >= self._trim_not_before:
            begin = time.monotonic()
            self._memory.trim()
            end = time.monotonic()
            self._trim_not_before = end + SHARE_OF_TIME * (end - begin)
            self._trim_wanted = False
        return self._growth(in_flight)

    def _absorb(self, growth: int) -> None:
        """Let growth that clients cannot be answerable for become ordinary."""
        if growth > 0:
            self._calm += growth - eviction.memory_behind(self._held(), growth)

    def _judge(self, now: float, in_flight: int) -> None:
        """Find out what a held byte costs, and relieve the process of those who hold most."""
        trimmed = now >= self._trim_not_before
        growth = self._trimmed_growth(now, in_flight)
        if growth <= (BUDGET if trimmed else UNTRIMMED_GROWTH_MAX):
            return
        self._survey(now)
        self._absorb(growth)
        suspect = sum(connection.suspect for connection in self._connections.values())
        growth -= min(EARNED_MAX, self._held() - suspect)
        self._cost = eviction.cost_of(suspect, growth)
        if growth > BUDGET:
            self._relieve()

    def _relieve(self) -> None:
        """Cut those with most suspect bytes until the rest is within the budget."""
        suspect = {
            descriptor: connection.suspect for descriptor, connection in self._connections.items()
        }
        allowed = eviction.allowance(sum(suspect.values()), self._cost, BUDGET)
        self._cut(eviction.choose(suspect, allowed), MEMORY)

    def _held(self) -> int:
        return sum(connection.held for connection in self._connections.values())

    # Connections

    def _survey(self, now: float) -> None:
        """Learn which connections there are and what each has sent; end the clear offenders."""
        found = {}
        offenders = []
        overfull = False
        for descriptor in tcp_connections.descriptors():
            key = tcp_connections.inode(descriptor)
            if not key or not self._is_client(descriptor, key):
                continue
            connection = self._connections.get(descriptor, Connection(key))
            if connection.key != key:
                connection = connection.successor(key)
            found[descriptor] = connection
            if self._observe(descriptor, connection):
                offenders.append(descriptor)
            overfull |= connection.overfull
        self._connections = found
        self._cut(offenders, MESSAGE_SIZE)
        self._cut(eviction.surplus(self._connections, self._connections_max), SURPLUS)
        self._telemetry.set("clients_connected", len(self._connections))
        end = time.monotonic()
        self._survey_due = now if overfull else now + SURVEY_SECONDS
        self._survey_not_before = end + SHARE_OF_TIME * (end - now)

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

    def _observe(self, descriptor: int, connection: Connection) -> bool:
        received, acknowledged = tcp_connections.totals(descriptor)
        waiting = 0
        if received - connection.delivered > eviction.HELD_SIZE_MAX:
            waiting = tcp_connections.waiting(descriptor)
        return connection.observe(received, acknowledged, waiting)

    def _cut(self, descriptors: list[int], reason: str) -> None:
        """Reset connections; what they held is freed by ZeroMQ's thread."""
        count = 0
        for descriptor in descriptors:
            connection = self._connections.pop(descriptor)
            key = connection.key or tcp_connections.inode(descriptor)
            if tcp_connections.reset(descriptor, key, self._port):
                self._leaving[descriptor] = key
                count += 1
        if not count:
            return
        self._leaving_until = time.monotonic() + LEAVING_SECONDS_MAX
        self._trim_wanted = True
        self._telemetry.add(f'connections_evicted_total{{reason="{reason}"}}', count)
        logger.warning("reset %d client connections: %s", count, reason)

    def _some_leave(self) -> bool:
        """Is ZeroMQ still to close connections that were reset?"""
        if not self._leaving:
            return False
        self._leaving = {
            descriptor: key
            for descriptor, key in self._leaving.items()
            if tcp_connections.inode(descriptor) == key
        }
        return bool(self._leaving)
