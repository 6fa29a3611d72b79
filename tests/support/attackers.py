"""Hostile clients: raw TCP connections that break the transport's rules, bounded in every way.

``python -m tests.support.attackers PORT SECONDS KIND=COUNT...`` opens COUNT connections of each
KIND at once, lets every one send as fast as it is taken, or as slowly as its kind says, and ends by
itself after SECONDS, or earlier when nobody is left to attack with.  It prints what it did as JSON:
for each kind the connections opened, those that the node ended, and the bytes sent.

One thread and non-blocking sockets, so that a thousand connections cost one process, and that one
no more than its share of a processor.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from meterd.protocol.envelope import RequestHeader, encode_request

SECONDS_MAX = 60.0
CONNECTIONS_MAX = 5_000
# What one turn hands to the kernel for one connection.
SLICE_SIZE = 256 * 1024
PAUSE_SECONDS = 0.05
# Connecting in batches keeps below the listener's backlog.
CONNECT_BATCH = 100

MORE, LARGE, COMMAND = 1, 2, 4
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)


def frame(body: bytes, flags: int = 0) -> bytes:
    """One ZMTP frame."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LARGE]) + struct.pack(">Q", len(body)) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


READY = frame(
    b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b""), COMMAND
)
PING = frame(b"\x04PING\x00\x00", COMMAND)

EMPTY_FRAMES = frame(b"", MORE) * 8_192

# A stream is what one connection sends, piece by piece; b"" is a pause, the end is silence.
Stream = Iterator[bytes]
# Libzmq refuses a peer that does not wait for the answer to this.
HANDSHAKE = GREETING + READY


def noise(seed: random.Random) -> Stream:
    """Random bytes instead of a greeting."""
    while True:
        yield seed.randbytes(SLICE_SIZE // 16)


def noise_after_handshake(seed: random.Random) -> Stream:
    """Random bytes where frames should be: every flag, every length."""
    yield HANDSHAKE
    while True:
        yield seed.randbytes(SLICE_SIZE // 16)


def silence(_: random.Random) -> Stream:
    """A connection that never says anything."""
    yield from ()


def half_greeting(_: random.Random) -> Stream:
    yield GREETING[:20]


def old_version(_: random.Random) -> Stream:
    """ZMTP 1.0: a routing id of no length, then messages without end."""
    yield b"\x01\x00"
    while True:
        yield b"\x05\x00half" * 1_000


def wrong_version(_: random.Random) -> Stream:
    """A version from the future and a mechanism that nobody knows."""
    yield SIGNATURE + b"\x09\x09" + b"GALOSH".ljust(20, b"\0") + b"\0" + bytes(31) + READY
    while True:
        yield frame(b"x" * 1_000, MORE)


def endless(_: random.Random) -> Stream:
    """A message whose frames never end."""
    yield HANDSHAKE
    piece = frame(b"e" * 65_536, MORE)
    while True:
        yield piece


def endless_small(_: random.Random) -> Stream:
    """The same of empty frames: two bytes on the wire, 64 in memory."""
    yield HANDSHAKE
    while True:
        yield EMPTY_FRAMES


def endless_trickle(_: random.Random) -> Stream:
    """The same, a small frame at a time: each pins a receive buffer."""
    yield HANDSHAKE
    piece = frame(b"t" * 34, MORE)
    while True:
        yield piece
        yield b""


def half_frame(_: random.Random) -> Stream:
    """A legal frame of nearly the largest size that stops one byte before its end."""
    yield HANDSHAKE
    size = 4 * 1024 * 1024 - 1_024
    yield bytes([LARGE]) + struct.pack(">Q", size)
    left = size - 1
    while left:
        part = min(left, SLICE_SIZE)
        yield bytes(part)
        left -= part


def oversized_frame(_: random.Random) -> Stream:
    """A frame that says it is a petabyte."""
    yield HANDSHAKE
    yield bytes([LARGE]) + struct.pack(">Q", 1 << 50)
    while True:
        yield bytes(SLICE_SIZE)


def many_frames(_: random.Random) -> Stream:
    """Whole messages of 10,000 frames each."""
    yield HANDSHAKE
    piece = frame(b"", MORE) * 9_999 + frame(b"")
    while True:
        yield piece


def malformed(_: random.Random) -> Stream:
    """Whole messages that are no requests, as fast as they are taken."""
    yield HANDSHAKE
    piece = (frame(b"\xc1garbage", MORE) + frame(b"")) * 500
    while True:
        yield piece


def abandoned(_: random.Random) -> Stream:
    """Whole messages and a heartbeat, then gone: what waits for it meets a dead connection."""
    yield HANDSHAKE
    yield frame(b"x") * 1_500 + PING + frame(b"x") * 10
    raise ConnectionAbortedError


def turncoat(_: random.Random) -> Stream:
    """A whole request of a megabyte, then a message whose frames never end."""
    yield HANDSHAKE
    header, body = encode_request(RequestHeader(1, "hello"), b"\x80" + bytes(1 << 20))
    yield frame(header, MORE) + frame(body)
    while True:
        yield EMPTY_FRAMES


KINDS = {
    stream.__name__: stream
    for stream in (
        noise,
        noise_after_handshake,
        silence,
        half_greeting,
        old_version,
        wrong_version,
        endless,
        endless_small,
        endless_trickle,
        half_frame,
        oversized_frame,
        many_frames,
        malformed,
        abandoned,
        turncoat,
    )
}


class Attacker:
    """One connection and what it has still to send."""

    def __init__(self, kind: str, port: int, seed: random.Random) -> None:
        self.kind = kind
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.stream = KINDS[kind](seed)
        self.unsent = b""
        self.heard = 0
        self.handshaking = False
        self.rest_until = 0.0

    def push(self, now: float) -> int | None:
        """Send what is taken, at most a slice; return the bytes, or None when nothing follows."""
        sent = 0
        while sent < SLICE_SIZE:
            if not self.unsent:
                if self.handshaking and self.heard <= len(GREETING):
                    return self.rest(now, sent)
                piece = next(self.stream, None)
                if piece is None:
                    return sent or None
                if not piece:
                    return self.rest(now, sent)
                self.handshaking = piece is HANDSHAKE
                self.unsent = piece
            try:
                count = self.socket.send(self.unsent)
            except BlockingIOError:
                return sent
            sent += count
            self.unsent = self.unsent[count:]
        return sent

    def rest(self, now: float, sent: int) -> int:
        self.rest_until = now + PAUSE_SECONDS
        return sent

    def discard(self) -> None:
        """Read what the node says; raise OSError when it has ended the connection."""
        try:
            heard = len(self.socket.recv(65_536))
        except BlockingIOError:
            return
        if not heard:
            raise ConnectionResetError
        self.heard += heard


class Report(NamedTuple):
    """What became of the connections of one kind."""

    opened: int
    ended: int
    sent_bytes: int


class Attack:
    """All connections, driven by one selector."""

    def __init__(self, port: int, counts: dict[str, int]) -> None:
        if sum(counts.values()) > CONNECTIONS_MAX:
            raise ValueError(f"more than {CONNECTIONS_MAX} connections")
        self._port = port
        self._counts = counts
        self._seed = random.Random(2_718_281)
        self._selector = selectors.DefaultSelector()
        self._opened = dict.fromkeys(counts, 0)
        self._ended = dict.fromkeys(counts, 0)
        self._sent = dict.fromkeys(counts, 0)
        self._resting: list[Attacker] = []

    def run(self, seconds: float) -> dict[str, Report]:
        give_up = time.monotonic() + min(seconds, SECONDS_MAX)
        order = [kind for kind, count in self._counts.items() for _ in range(count)]
        self._seed.shuffle(order)
        for at in range(0, len(order), CONNECT_BATCH):
            for kind in order[at : at + CONNECT_BATCH]:
                self._open(kind)
            self._turn(0.0)
        while time.monotonic() < give_up and self._selector.get_map():
            self._turn(PAUSE_SECONDS)
        return {
            kind: Report(self._opened[kind], self._ended[kind], self._sent[kind])
            for kind in self._counts
        }

    def _open(self, kind: str) -> None:
        try:
            attacker = Attacker(kind, self._port, self._seed)
        except OSError:
            return  # the node takes no more
        self._opened[kind] += 1
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.register(attacker.socket, both, attacker)

    def _turn(self, wait: float) -> None:
        now = time.monotonic()
        for attacker in [one for one in self._resting if one.rest_until <= now]:
            self._resting.remove(attacker)
            self._listen(attacker, selectors.EVENT_READ | selectors.EVENT_WRITE)
        for key, events in self._selector.select(wait):
            attacker = key.data
            try:
                if events & selectors.EVENT_READ:
                    attacker.discard()
                if events & selectors.EVENT_WRITE:
                    self._push(attacker, now)
            except OSError as error:
                if not isinstance(error, ConnectionAbortedError):
                    self._ended[attacker.kind] += 1
                self._close(attacker)

    def _push(self, attacker: Attacker, now: float) -> None:
        sent = attacker.push(now)
        if sent is None:
            self._listen(attacker, selectors.EVENT_READ)
            return
        self._sent[attacker.kind] += sent
        if attacker.rest_until > now:
            self._listen(attacker, selectors.EVENT_READ)
            self._resting.append(attacker)

    def _listen(self, attacker: Attacker, events: int) -> None:
        self._selector.modify(attacker.socket, events, attacker)

    def _close(self, attacker: Attacker) -> None:
        self._selector.unregister(attacker.socket)
        attacker.socket.close()
        if attacker in self._resting:
            self._resting.remove(attacker)


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    counts = {kind: int(count) for kind, _, count in (a.partition("=") for a in sys.argv[3:])}
    reports = Attack(port, counts).run(seconds)
    print(json.dumps({kind: report._asdict() for kind, report in reports.items()}))


if __name__ == "__main__":
    main()
