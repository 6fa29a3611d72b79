"""Guards the client listener: bounds what hostile or broken clients make the router hold and do.

ZeroMQ bounds a frame but not a message, and counts messages only once they are whole.  The guard
looks at the process's resident memory every few milliseconds, which costs next to nothing.  When
that has grown by more than is explained, it surveys all connections (`ConnectionTable`) and resets
those with most bytes that nothing has earned them (`core.eviction`).

An alarm acts at the second look, after the router has taken what waits: a message that has just
become whole is no longer held.  What connections that were reset held is still in the memory until
ZeroMQ has let go of them; until then a held byte is taken to cost what it did.  Memory that is free
but kept by the C library looks like growth, so it is given back before anybody is blamed whose
bytes do not explain the growth by themselves.

Messages are taken in portions, so that a look is never far: what peers had sent before they were
reset cannot be dropped unread, and one message may have a million frames.
"""

from __future__ import annotations

import select
import time
from typing import Any

import zmq

from meterd.actors.frames import sockets
from meterd.actors.frames.sockets import Frame
from meterd.actors.listening import connection_table, tcp_connections
from meterd.actors.listening.connection_table import ConnectionTable
from meterd.actors.measuring.telemetry import Telemetry
from meterd.core import eviction
from meterd.core.eviction import FRAME_OVERHEAD
from meterd.protocol import limits

MIB = 1 << 20
# Memory that clients may hold together in suspect bytes, beyond what connections take anyway.
BUDGET = 8 * MIB
# The same for a while after somebody was reset: attackers seldom come alone.
BUDGET_BESIEGED = 2 * MIB
SIEGE_SECONDS = 2.0
# And in earned ones, too.
EARNED_MAX = 64 * MIB
# A request in flight is in this process as the router's frames and as those on their way.
COPIES_OF_REQUEST = 2
# Beyond this the guard acts even if free memory may be the reason, when it must not trim yet.
UNTRIMMED_GROWTH_MAX = 2 * BUDGET

# A transport takes up to 1 GB/s from its peers, so these seconds decide how far the memory goes
# before the guard acts; each look costs a wake-up of the actor, so these decide its idle load.
LOOK_QUIET_SECONDS = 0.02
LOOK_BUSY_SECONDS = 0.005
# How long a change of the memory by this size keeps the guard busy.
BUSY_SECONDS = 0.5
BUSY_CHANGE = 256 * 1024
SURVEY_SECONDS = 1.0
REPORT_SECONDS = 1.0
# Regular surveys may take one part in so many of the time.
SHARE_OF_IDLE_TIME = 200
# Early surveys and trims may each take one part in so many of the time.
SHARE_OF_TIME = 5
# A trim that gives back less was the last for now.
TRIM_GAIN_MIN = 1 * MIB
# Growth that no client is answerable for is looked at so often, and after a while ordinary.
UNEXPLAINED_PAUSE_SECONDS = 0.1
UNEXPLAINED_SECONDS_MAX = 5.0

# Header, body and one more that shows the fault; the rest of a message is dropped.
FRAMES_KEPT = limits.FRAME_COUNT + 1
# A message with so many more is no mistake.
EXCESS_MAX = 64
# What the router takes between two looks: a few milliseconds of work, 500 requests.
FRAMES_BETWEEN_LOOKS_MAX = 1_536
BYTES_BETWEEN_LOOKS_MAX = 32 * MIB
# What the answer to a malformed message costs, in frames.
FRAMES_PER_STRIKE = 32


class ListenerGuard:
    """Watches the connections that one process has accepted on `port`."""

    def __init__(self, port: int, connections_max: int, telemetry: Telemetry) -> None:
        self._table = ConnectionTable(port, connections_max, telemetry)
        self._memory = tcp_connections.ProcessMemory()
        self._resident = self._memory.resident()
        self._calm = self._resident  # what the process takes without its clients
        self._busy_until = 0.0
        self._survey_due = 0.0
        self._report_due = 0.0
        self._survey_not_before = 0.0
        self._trim_not_before = 0.0
        self._trimming = False  # memory was freed, and the last trim was worth it
        self._alarmed = False
        self._siege_until = 0.0
        self._at_rest = False  # nothing but a survey is due, as the memory was at the last look
        self._now = 0.0  # at the last look, and bytes of requests in flight then
        self._in_flight = 0
        self._judge_not_before = 0.0
        self._borne = 0  # growth that no client was answerable for
        self._unexplained_since: float | None = None
        self._cost = 1  # memory behind a held byte, when that was last judged

        self.source = -1  # descriptor of the last message
        self._sender = b""  # and its routing id
        self._struck = False  # it was malformed, and its sender was still there
        self._excess = 0  # frames it has had beyond those kept, while there are more
        self._frames_left = FRAMES_BETWEEN_LOOKS_MAX
        self._bytes_left = BYTES_BETWEEN_LOOKS_MAX

    # Messages

    def receive(self, socket: zmq.Socket[bytes]) -> list[Frame]:
        """Take one message, at most a frame more than is legal.

        Raises zmq.Again when there is none, or when others must have their turn first.
        """
        self._sender = self._next_sender(socket)
        frames: list[Frame] = [self._sender]
        frame: Any = socket.recv(sockets.NOBLOCK, False)
        self.source = sockets.source(frame)
        size = FRAME_OVERHEAD * limits.FRAME_COUNT
        while True:
            part = sockets.content(frame)
            frames.append(part)
            size += len(part)
            if not frame.more:
                break
            if len(frames) > FRAMES_KEPT:
                self._excess = 1
                break
            frame = socket.recv(sockets.NOBLOCK, False)
        self._table.credit(self.source, self._sender, size)
        self._struck = False
        self._frames_left -= len(frames)
        self._bytes_left -= size
        return frames

    def waits(self, socket: zmq.Socket[bytes]) -> bool:
        """Is there a message to take?  When none is, none of an outcast is."""
        if sockets.waits(socket):
            return True
        self._table.outcasts.clear()
        return False

    def _next_sender(self, socket: zmq.Socket[bytes]) -> bytes:
        """Take the routing id of the next message whose sender is not an outcast."""
        outcasts = self._table.outcasts
        while True:
            if self._excess:
                self._drop_excess(socket)
            if self._frames_left < 0 or self._bytes_left < 0:
                self.look(time.monotonic(), self._in_flight)
                raise zmq.Again
            try:
                rid = socket.recv(sockets.NOBLOCK)
            except zmq.Again:
                # Nothing waits, so nothing of theirs does; a client may have chosen such an id.
                outcasts.clear()
                raise
            if rid not in outcasts:
                return rid
            self._struck = False
            self._excess = 1

    def _drop_excess(self, socket: zmq.Socket[bytes]) -> None:
        """Drop the frames that the last message should not have."""
        more = True
        while more and self._frames_left >= 0:
            frame: Any = socket.recv(sockets.NOBLOCK, False)
            more = frame.more
            self._excess += 1
            self._frames_left -= 1
            if self._excess == EXCESS_MAX and self._struck:
                self._table.cut([self.source], connection_table.FRAMES)
                self._besieged(self._now)
        if not more:
            self._excess = 0

    def answered(self, descriptor: int, frames: list[Frame]) -> None:
        """Note that an answer to the sender of a message was taken by ZeroMQ."""
        self._table.answered(descriptor, sum(map(len, frames)), self._now)

    def strike(self, present: bool) -> None:
        """Note that the last message was malformed, and whether its sender is still there."""
        self._struck = present
        self._frames_left -= FRAMES_PER_STRIKE
        if not present:
            self._table.outcasts.add(self._sender)
        elif self._table.strike(self.source):
            self._besieged(self._now)

    # Looks

    def look(self, now: float, in_flight: int) -> float:
        """Act on what clients hold, given the bytes of requests in flight.

        Returns the seconds until the next look.
        """
        self._frames_left = FRAMES_BETWEEN_LOOKS_MAX
        self._bytes_left = BYTES_BETWEEN_LOOKS_MAX
        self._now = now
        self._in_flight = in_flight
        self._at_rest = False
        budget = BUDGET_BESIEGED if now < self._siege_until else BUDGET
        growth = self._growth(now)
        if growth <= budget:
            self._alarmed = False
            self._unexplained_since = None
            # From half of it on often, so that an alarm finds fresh totals.
            if now >= (self._survey_not_before if growth > budget // 2 else self._survey_due):
                self._survey(now)
                self._trim_while_worth(now)
        elif not self._alarmed:
            self._alarmed = True
            return 0.0  # the router takes what waits, then the guard judges
        elif now >= self._judge_not_before or growth > self._borne + budget // 2:
            self._judge(now, budget)
        busy = self._alarmed or now < self._busy_until
        self._at_rest = not busy and growth <= budget // 2
        return LOOK_BUSY_SECONDS if busy else LOOK_QUIET_SECONDS

    def rest(self, now: float) -> float:
        """Return the seconds for which a look finds nothing to do, unless the memory changes.

        It changes before a message has come; whoever takes one looks again soon.
        """
        return max(0.0, self._survey_due - now) if self._at_rest else 0.0

    def wait(self, epoll: select.epoll, seconds: float) -> bool:
        """Wait for news at `epoll`; False when the memory is another one than at the last look."""
        return self._memory.wait_unchanged(epoll, seconds, LOOK_QUIET_SECONDS)

    def close(self) -> None:
        self._memory.close()

    def _survey(self, now: float) -> None:
        begin = time.monotonic()
        urgent = self._table.survey(now)
        took = time.monotonic() - begin
        if now >= self._report_due:
            self._table.report()
            self._report_due = now + REPORT_SECONDS
        seconds = max(SURVEY_SECONDS, SHARE_OF_IDLE_TIME * took)
        self._survey_due = now if urgent else now + seconds
        self._survey_not_before = now + SHARE_OF_TIME * took

    def _growth(self, now: float) -> int:
        """Return how much memory has grown beyond what requests and connections explain."""
        resident = self._memory.resident()
        if abs(resident - self._resident) > BUSY_CHANGE:
            self._busy_until = now + BUSY_SECONDS
        self._resident = resident
        self._calm = min(self._calm, resident)
        return resident - self._calm - COPIES_OF_REQUEST * self._in_flight - self._table.memory

    def _judge(self, now: float, budget: int) -> None:
        """Find out what a held byte costs, and relieve the process of those who hold most."""
        self._survey(now)
        leaving = self._table.some_leave(now)
        if not leaving:
            growth = self._growth(now)
            if self._table.suspect < budget:
                trimmed = self._maybe_trim(now)
                growth = self._growth(now)
                if growth <= (budget if trimmed else UNTRIMMED_GROWTH_MAX):
                    return
            if growth > EARNED_MAX and self._relieve_of_earned(growth):
                return
            earned = min(EARNED_MAX, self._table.earned)
            self._cost = eviction.cost_of(self._table.suspect, max(1, growth - earned))
        if self._table.relieve(self._cost, budget):
            self._besieged(now)
        elif not leaving:
            self._wait_for_explanation(now, growth)

    def _relieve_of_earned(self, growth: int) -> bool:
        """Nothing earns this much: when suspect bytes are not the reason, all that are held are."""
        held = self._table.suspect + self._table.earned
        if eviction.memory_behind(self._table.suspect, growth) >= growth:
            return False
        cost = eviction.cost_of(held, growth)
        if not self._table.relieve(cost, EARNED_MAX, earned=True):
            return False
        self._besieged(self._now)
        return True

    def _besieged(self, now: float) -> None:
        """Somebody was reset: memory will be free, and others may follow."""
        self._siege_until = now + SIEGE_SECONDS
        self._trimming = True

    def _wait_for_explanation(self, now: float, growth: int) -> None:
        """Bear growth that no client is answerable for; let it become ordinary if it stays.

        It goes by itself when it is messages of peers that have left, still to be taken.
        """
        self._judge_not_before = now + UNEXPLAINED_PAUSE_SECONDS
        self._borne = growth
        if self._unexplained_since is None:
            self._unexplained_since = now
        elif now - self._unexplained_since > UNEXPLAINED_SECONDS_MAX:
            self._calm += growth - eviction.memory_behind(self._table.suspect, growth)

    def _maybe_trim(self, now: float) -> bool:
        """Give free memory back to the system, unless that has just taken its share of time."""
        if now < self._trim_not_before:
            return False
        begin = time.monotonic()
        self._memory.trim()
        self._trim_not_before = now + SHARE_OF_TIME * (time.monotonic() - begin)
        return True

    def _trim_while_worth(self, now: float) -> None:
        if self._trimming and self._maybe_trim(now):
            before, self._resident = self._resident, self._memory.resident()
            self._trimming = before - self._resident > TRIM_GAIN_MIN
