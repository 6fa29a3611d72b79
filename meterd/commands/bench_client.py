"""One client process of the load generator: as little work for each event as can be.

The generator shares its machine with the node it measures, so a request is not built but patched:
each process makes its request bodies once, with a random mix of accounts, metrics and values, and
before it sends one overwrites the timestamps and the event ids (random, 16 bytes, never used
twice). An answer in which every event was stored is recognised by its bytes.

The process is told what to do and tells what it did through shared memory (`SharedRun`); it makes
its ZeroMQ context itself, after the fork. It notes which bodies were stored how often, which gives
the sum that each account must have afterwards, without any work for each event.
"""

import math
import mmap
import os
import time
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import zmq

from meterd.client.partitions import PartitionMap
from meterd.commands.bench_report import BUCKETS, bucket_of

WAIT, WARM_UP, MEASURE, STOP = range(4)  # the phases of a run, in this order
COUNTS = (
    "requests",
    "received",
    "stored",
    "duplicate",
    "conflict",
    "rejected",
    "unknown",
    "accepted",
    "errors",
    "unanswered",
    "cpu_us",
    "ready",
    "done",
)
STATUSES = ("stored", "duplicate", "conflict", "rejected", "unknown", "accepted")
BODY_ROWS = 131_072  # rows of all the bodies that a process prepares
BODIES_MIN, BODIES_MAX = 16, 8192
VALUE_MAX = 1000
DEADLINE_MS = 30_000
MAP_DEADLINE_MS = 5_000
POLL_MS = 100  # how long a wait lasts before the process looks whether its parent still lives
BACK_OFF_MAX = 0.1  # seconds; a node that is overloaded asks for more patience than a bench has
LATE_SECONDS_MAX = 1.0  # requests that came later than due are made up for, up to so much of them
CACHED_ANSWERS = 64
RANDOM_SIZE = 64 * 1024
MORE, NOBLOCK = int(zmq.SNDMORE), int(zmq.NOBLOCK)  # an enum costs a call each time
_ID_PREFIX = b"\xcf"  # msgpack: a 64-bit number follows, big-endian
_BODY_ERRORS_UNDECIDED = ("restarting", "deadline_exceeded", "internal", "shutting_down")


@dataclass(frozen=True)
class Load:
    """What to send."""

    nodes: tuple[str, ...]
    batch: int
    clients: int
    in_flight: int  # requests that wait for an answer, per client
    durability: str
    accounts: int
    metrics: int
    events_per_account: int  # neighbouring events of a request that share an account
    rate: float  # events a second at most, of all clients together; 0: as many as are taken
    timeout: float

    @property
    def metric_codes(self) -> list[str]:
        return [f"bench_{number}" for number in range(self.metrics)]

    def account(self, number: int) -> str:
        return f"bench-{number:09d}"


class SharedRun:
    """Memory that the parent and its client processes share; every number is 64 bits."""

    def __init__(self, load: Load) -> None:
        pairs = load.accounts * load.metrics
        per_client = {"counts": len(COUNTS), "latency": BUCKETS, "stored": pairs}
        per_client["undecided"] = pairs
        sizes = {"phase": 1} | {name: load.clients * size for name, size in per_client.items()}
        numbers = np.frombuffer(mmap.mmap(-1, sum(sizes.values()) * 8), np.int64)
        ends = np.cumsum(list(sizes.values()))
        parts = dict(zip(sizes, np.split(numbers, ends[:-1]), strict=True))
        self.phase = parts["phase"]
        self.counts = parts["counts"].reshape(load.clients, len(COUNTS))
        self.latency = parts["latency"].reshape(load.clients, BUCKETS)
        # Sums of values per client, then account * metrics + metric.
        self.stored = parts["stored"].reshape(load.clients, pairs)
        self.undecided = parts["undecided"].reshape(load.clients, pairs)

    def total(self, name: str) -> int:
        return int(self.counts[:, COUNTS.index(name)].sum())


class Random:
    """Random bytes, made many at a time: a call of numpy costs as much as a small request."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator, self._bytes, self._at = generator, b"", 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, a multiple of eight; none is given twice."""
        begin, self._at = self._at, self._at + size
        if self._at > len(self._bytes):
            words = max(size, RANDOM_SIZE) // 8
            self._bytes = self._generator.bit_generator.random_raw(words).tobytes()
            begin, self._at = 0, size
        return self._bytes[begin : self._at]


class Body:
    """A request body that can be sent again and again as different events."""

    def __init__(self, load: Load, random: np.random.Generator) -> None:
        count = load.batch
        holders = -(-count // load.events_per_account)
        account = random.integers(0, load.accounts, holders).repeat(load.events_per_account)[:count]
        metric = random.integers(0, load.metrics, count)
        self.first_account = load.account(int(account[0]))
        self.values = random.integers(1, VALUE_MAX + 1, count)
        self.pairs = account * load.metrics + metric
        names = [load.account(int(number)).encode() for number in account]
        offsets = np.cumsum([0, *map(len, names)])
        fields: dict[str, Any] = {
            "durability": load.durability,
            "n": count,
            "value": self.values.astype("<i8").tobytes(),
            "metric": {"values": load.metric_codes, "index": metric.astype("<u2").tobytes()},
            "account": {"offsets": offsets.astype("<u4").tobytes(), "text": b"".join(names)},
        }
        packed = bytearray(msgpack.Packer().pack_map_header(len(fields) + 2))
        for key, value in fields.items():
            packed += msgpack.packb(key) + msgpack.packb(value)
        packed += msgpack.packb("timestamp") + msgpack.packb(bytes(8 * count))
        timestamps_end = len(packed)
        packed += msgpack.packb("id") + msgpack.packb({"uuid": bytes(16 * count)})
        self.bytes = packed
        self._timestamps = slice(timestamps_end - 8 * count, timestamps_end)
        self._ids = slice(len(packed) - 16 * count, len(packed))

    def refresh(self, random: Random) -> None:
        """Make other events of it: new ids, and the time now."""
        count = len(self.values)
        self.bytes[self._timestamps] = time.time_ns().to_bytes(8, "little") * count
        self.bytes[self._ids] = random.take(16 * count)


class Client:
    """Keeps `in_flight` requests under way until it is told to stop, and counts the answers."""

    def __init__(self, load: Load, shared: SharedRun, number: int) -> None:
        self.load = load
        self.phase = shared.phase.data
        self.counts = dict.fromkeys(COUNTS, 0)
        self.shared_counts = shared.counts[number]
        self.shared_latency = shared.latency[number]
        self.sums = (shared.stored[number], shared.undecided[number])
        generator = np.random.Generator(np.random.SFC64())
        self.random = Random(generator)
        count = min(BODIES_MAX, max(BODIES_MIN, BODY_ROWS // load.batch))
        self.bodies = [Body(load, generator) for _ in range(count)]
        self.whole = [0] * count  # how often all rows of a body were stored
        self.latency = [0] * BUCKETS
        self.pending: dict[int, tuple[int, int]] = {}  # request id → (sent at, body number)
        self.known_answers: dict[bytes, dict[str, int]] = {}
        self.next_id = 0
        # Seconds from one request to the next; when that is due; requests that wait for it.
        self.interval = load.batch * load.clients / load.rate if load.rate else 0.0
        self.due, self.held = 0.0, 0
        self.node = load.nodes[number % len(load.nodes)]
        self.sockets: dict[str, zmq.Socket[bytes]] = {}  # by address
        self.poller = zmq.Poller()
        self.ways: list[zmq.Socket[bytes]] = []  # of each body
        start = msgpack.packb({"v": 1, "kind": "ingest", "deadline": DEADLINE_MS})
        self.header = bytes([start[0] + 1]) + start[1:] + msgpack.packb("id") + _ID_PREFIX

    def run(self) -> None:
        """Send until the phase is STOP and everything under way is answered or given up."""
        context = zmq.Context()
        self.ways = self.find_ways(context)
        self.counts["ready"] = 1
        self.publish()
        parent = os.getppid()
        while self.phase[0] == WAIT and os.getppid() == parent:
            time.sleep(POLL_MS / 1000)
        self.due = time.monotonic()
        for _ in range(self.load.in_flight):
            self.send_on()
        while (self.pending or self.held) and os.getppid() == parent:
            self.take_answers()
            self.send_held()
            self.give_up_on_old()
            self.publish()
        self.finish()
        context.destroy(0)

    def find_ways(self, context: zmq.Context[zmq.Socket[bytes]]) -> list[zmq.Socket[bytes]]:
        """Return the socket that each body is sent on.

        A body of one event goes to the node that leads its account, as with `meterd.client`; any
        other goes to one node for all, which splits it.
        """
        own = self.connect(context, self.node)
        if self.load.batch > 1 or len(self.load.nodes) == 1:
            return [own] * len(self.bodies)
        request = {"v": 1, "kind": "map", "deadline": MAP_DEADLINE_MS, "id": 0}
        own.send_multipart([msgpack.packb(request), msgpack.packb({})])
        if not own.poll(MAP_DEADLINE_MS):
            return [own] * len(self.bodies)
        _, answer = own.recv_multipart()
        leaders = PartitionMap(msgpack.unpackb(answer, strict_map_key=False))
        addresses = [leaders.leader_of(body.first_account) for body in self.bodies]
        return [self.connect(context, address or self.node) for address in addresses]

    def connect(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str
    ) -> zmq.Socket[bytes]:
        """Return the socket to a node."""
        if address not in self.sockets:
            socket = self.sockets[address] = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.RCVTIMEO, POLL_MS)
            socket.connect(f"tcp://{address}")
            self.poller.register(socket, zmq.POLLIN)
        return self.sockets[address]

    def send_on(self) -> None:
        """Send the next request: now, or when it is due."""
        if self.interval:
            self.held += 1
        else:
            self.send()

    def send_held(self) -> None:
        """Send what has waited until it was due; what came late is made up for, for a while."""
        if self.phase[0] >= STOP:
            self.held = 0
        now = time.monotonic()
        self.due = max(self.due, now - LATE_SECONDS_MAX)
        while self.held and self.due <= now:
            self.held -= 1
            self.due += self.interval
            self.send()

    def send(self) -> None:
        """Make the next request out of the next body and send it."""
        request_id = self.next_id
        self.next_id = request_id + 1
        body_number = request_id % len(self.bodies)
        body = self.bodies[body_number]
        body.refresh(self.random)
        way = self.ways[body_number]
        way.send(self.header + request_id.to_bytes(8, "big"), MORE)
        way.send(body.bytes)
        self.pending[request_id] = (time.perf_counter_ns(), body_number)

    def take_answers(self) -> None:
        """Take the answers that are there, at most as many as were under way, and send on."""
        if self.held:
            left = math.ceil((self.due - time.monotonic()) * 1000)
            self.take_polled(max(0, min(POLL_MS, left)))
        elif len(self.sockets) == 1:
            self.take_from(self.ways[0], self.load.in_flight)
        elif len(self.pending) == 1:
            ((_, body_number),) = self.pending.values()
            self.take_from(self.ways[body_number], 1)
        else:
            self.take_polled(POLL_MS)

    def take_polled(self, wait_ms: int) -> None:
        for socket, _ in self.poller.poll(wait_ms):
            self.take_from(socket, self.load.in_flight, NOBLOCK)

    def take_from(self, socket: zmq.Socket[bytes], count: int, flags: int = 0) -> None:
        """Take up to so many answers; without NOBLOCK each is waited for, for POLL_MS."""
        receive = socket.recv
        for _ in range(count):
            try:
                header = msgpack.unpackb(receive(flags))
            except zmq.Again:
                return
            self.take_answer(header, receive())
            if self.held and not flags:
                return  # the next request is due soon

    def take_answer(self, header: dict[str, Any], body: bytes) -> None:
        sent_at, body_number = self.pending.pop(header["id"], (0, 0))
        if not sent_at:
            return  # an answer to a request that was given up
        phase = self.phase[0]
        if phase == MEASURE:
            self.latency[bucket_of(time.perf_counter_ns() - sent_at)] += 1
        self.counts["requests"] += 1
        counts = self.known_answers.get(body)
        if counts is not None:
            self.whole[body_number] += 1
            self.counts["received"] += self.load.batch
            self.counts["stored"] += counts["stored"]
            self.counts["accepted"] += counts.get("accepted", 0)
        else:
            self.take_new_answer(header, body, body_number)
        if phase < STOP:
            self.send_on()

    def take_new_answer(self, header: dict[str, Any], body: bytes, body_number: int) -> None:
        """Take an answer that was not seen before: an error, or one that names single rows."""
        answer = msgpack.unpackb(body)
        if header["status"] != "ok":
            self.counts["errors"] += 1
            if answer["code"] in _BODY_ERRORS_UNDECIDED:
                self.add_rows(1, body_number, np.ones(self.load.batch, bool))
            time.sleep(min(BACK_OFF_MAX, answer.get("retry_after_ms", 0) / 1000))
            return
        for name in ("received", *STATUSES):
            self.counts[name] += answer.get(name, 0)
        if not answer["items"]:
            self.whole[body_number] += 1
            if len(self.known_answers) < CACHED_ANSWERS:
                self.known_answers[body] = answer
            return
        stored = np.ones(self.load.batch, bool)
        undecided = ~stored
        for row, status, _reason in answer["items"]:
            stored[row] = False
            undecided[row] = status == "unknown"
        self.add_rows(0, body_number, stored)
        self.add_rows(1, body_number, undecided)

    def add_rows(self, which: int, body_number: int, rows: Any, times: int = 1) -> None:
        """Add the values of rows to what is stored (0) or what may be (1)."""
        body = self.bodies[body_number]
        np.add.at(self.sums[which], body.pairs[rows], body.values[rows] * times)

    def give_up_on_old(self) -> None:
        """Count requests that were not answered in time as such, and send others instead."""
        horizon = time.perf_counter_ns() - int(self.load.timeout * 1e9)
        while self.pending:
            request_id, (sent_at, body_number) = next(iter(self.pending.items()))
            if sent_at > horizon:
                return  # they are in the order of sending
            del self.pending[request_id]
            self.counts["unanswered"] += 1
            self.add_rows(1, body_number, np.ones(self.load.batch, bool))
            if self.phase[0] < STOP:
                self.send_on()

    def finish(self) -> None:
        """Publish what the whole run came to."""
        for body_number, times in enumerate(self.whole):
            if times:
                self.add_rows(0, body_number, np.ones(self.load.batch, bool), times)
        self.shared_latency[:] = self.latency
        self.counts["done"] = 1
        self.publish()

    def publish(self) -> None:
        self.counts["cpu_us"] = int(time.process_time() * 1e6)
        self.shared_counts[:] = list(self.counts.values())
