"""Decides which client connections have to go so that what they hold stays within bounds.

The transport buffers a message until it is whole and sets no limit to its frames, so a peer that
never ends a message, or a thousand peers with half of one, could fill any memory.  What a
connection *holds* is what it has sent and the router has not been given, and the answers it has
not read.  The memory behind a held byte is unknown (an empty frame is two bytes on the wire and
64 in memory; a frame that arrives alone can pin a whole receive buffer), so the process's growth
says *whether* something must go, and the held bytes say *who*, largest first.

A client may hold as much as it has already delivered in well-formed requests, and a little more:
those bytes are *earned*, only the others are *suspect*.  Answers that it has not read yet are
earned while it reads: it asked for them, and large ones take a while.  So whoever abuses the
transport goes before any client that uses it, even one with large requests on a slow line.

Invariants:
  * no connection that holds at most a fair share of the allowance is cut
  * what stays, taken at the memory that a held byte costs now, is within the budget
Does not know: sockets, descriptors, clocks; `now` is seconds of any clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meterd.protocol import limits

# A frame's flags and length on the wire, at most.
FRAME_OVERHEAD = 9
# Nobody who keeps to the protocol can hold more than this of one message.
HELD_SIZE_MAX = limits.HEADER_SIZE_MAX + limits.BODY_SIZE_MAX + limits.FRAME_COUNT * FRAME_OVERHEAD
# Greeting and handshake: sent by every peer, never delivered.
GREETING_SIZE = 64
HANDSHAKE_SIZE = 128
# What the first well-formed request earns: requests and answers on their way while all is slow.
EARNED_FIRST = 64 * 1024
# Whoever has not read for so long does not.
READ_SECONDS = 2.0
# Memory behind one held byte, at most: a frame of 36 bytes that came alone pins 8 KiB (measured).
AMPLIFICATION_MAX = 256


@dataclass(slots=True)
class Connection:
    """What one connection has sent, was sent, and how much of both arrived: bytes, as totals."""

    key: int  # names the connection for ever, unlike its descriptor
    rid: bytes = b""  # routing id, once there was a message
    delivered: int = 0  # of messages that the router was given
    answered: int = 0  # of answers that the router gave to the transport
    received: int = 0  # by the kernel; the transport takes it as soon as it can
    acknowledged: int = 0  # of answers, by the peer's kernel
    strikes: int = 0  # messages that follow no protocol
    delivered_before: int = 0  # `delivered` at the last survey
    answered_before: int = 0
    wide: bool = False  # the kernel may take more of it ahead of the transport
    overfull: bool = False  # it held more than a message at the last survey
    read_at: float = 0.0  # when it last read, as far as known, or had read everything
    reads: bool = False  # it did so lately

    def answer(self, size: int, now: float) -> None:
        """Note an answer that the transport has taken."""
        if self.answered <= self.acknowledged:
            self.read_at, self.reads = now, True
        self.answered += size

    def observe(self, received: int, acknowledged: int, waiting: int, now: float) -> bool:
        """Take the kernel's totals and the bytes still `waiting` in it.

        Returns whether the message that is on its way can never become a legal one.

        It may be whole and not yet delivered, so that is said only when a survey found it too
        large, the router has taken what waits, and nothing came of it.
        """
        stalled = self.overfull and self.delivered == self.delivered_before
        self.received = received
        if acknowledged > self.acknowledged:
            self.read_at = now
        self.reads = now - self.read_at < READ_SECONDS
        self.acknowledged = acknowledged
        # What was delivered beyond it belongs to an earlier connection; what was acknowledged
        # beyond it is no answer but the transport's own.
        self.delivered = self.delivered_before = min(self.delivered, received)
        self.answered = self.answered_before = max(self.answered, acknowledged)
        self.overfull = self.unfinished - waiting > HELD_SIZE_MAX
        return stalled and self.overfull

    def successor(self, key: int) -> Connection:
        """Return a new connection in the place of this one, credited with what it may have sent."""
        return Connection(
            key,
            delivered=self.delivered - self.delivered_before,
            answered=self.answered - self.answered_before,
        )

    @property
    def unfinished(self) -> int:
        """Bytes sent and not delivered."""
        return max(0, self.received - self.delivered - HANDSHAKE_SIZE)

    @property
    def held(self) -> int:
        return self.unfinished + self.answered - self.acknowledged

    @property
    def suspect(self) -> int:
        """Bytes held beyond what well-formed requests have earned."""
        if self.strikes or not self.delivered:
            return self.held
        unread = 0 if self.reads else self.answered - self.acknowledged
        return max(0, self.unfinished + unread - self.delivered - EARNED_FIRST)


def memory_behind(held: int, growth: int) -> int:
    """Return how much of a process's `growth` the `held` bytes can be answerable for."""
    return min(growth, held * AMPLIFICATION_MAX)


def cost_of(held: int, growth: int) -> int:
    """Return the memory behind a held byte, rounded up, when a process has grown by `growth`."""
    return -(-memory_behind(held, growth) // held) if held else 1


def allowance(held: int, cost: int, budget: int) -> int:
    """Return how many of the `held` bytes may stay when each costs `cost`.

    Beyond the budget only half of it is left, or the next bytes would bring the next alarm.
    """
    return held if held * cost <= budget else budget // 2 // cost


def choose(held: Mapping[int, int], allowed: int) -> list[int]:
    """Return the connections to cut, largest first, until the rest hold at most `allowed`."""
    total = sum(held.values())
    cut = []
    for connection in sorted(held, key=held.__getitem__, reverse=True):
        if total <= allowed:
            break
        total -= held[connection]
        cut.append(connection)
    return cut


def surplus(connections: Mapping[int, Connection], count_max: int) -> list[int]:
    """Return the connections to cut when there are too many: the silent ones, oldest first.

    A client speaks soon after it has connected; who never did has nothing to lose.
    """
    excess = len(connections) - count_max
    if excess <= 0:
        return []
    by_use = sorted(connections, key=lambda name: connections[name].delivered > 0)
    return by_use[:excess]
