"""Redis doing meterd's job: events kept durably, counted once each, totals up to date.

A script stores a request in one step: an event whose key is new is kept under it and its value
added to the account's total.  In two steps a client that dies between them would lose or double
events, so plain pipelines are no peer.  The append-only file is synced before every answer
(`appendfsync always`); Redis does that once for all the requests it found waiting.  Two ways of
keeping events were worth trying: a key for each event, and a hash of events for each account.
"""

import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.load import ACCOUNT_SIZE, Body, Measurement, Shape, account_name, run_clients
from bench.processes import await_server, find_program, peer_directory, running
from bench.support import directory_size

INSTALL = "apt-get install redis-server"
USER = "nobody"
SOCKET = "redis.sock"
SETTINGS = {
    "port": "0",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "auto-aof-rewrite-percentage": "0",
    "maxmemory": "0",
}
# Arguments of an event, each made of fields of fixed width: account, id, metric, value, content.
ARGUMENTS: tuple[dict[str, str], ...] = (
    {"account": f"S{ACCOUNT_SIZE}"},
    {"id": "V16"},
    {"metric": "S1"},
    {"value": "S3"},
    {"kept_metric": "S1", "kept_value": "S3", "kept_at": "S19"},
)
SCRIPTS = {
    "keys": "redis.call('SET', 'e' .. ARGV[i] .. ARGV[i + 1], ARGV[i + 4], 'NX')",
    "hashes": "redis.call('HSETNX', 'e' .. ARGV[i], ARGV[i + 1], ARGV[i + 4]) == 1",
}
SCRIPT = """
local stored = 0
for i = 1, #ARGV, 5 do
  if %s then
    redis.call('HINCRBY', 't' .. ARGV[i], ARGV[i + 2], ARGV[i + 3])
    stored = stored + 1
  end
end
return stored
"""
RECEIVE_SIZE = 65_536


class RedisPeer:
    """Sends each request as one call of the script, on many connections."""

    def __init__(self, directory: Path, slots: int, method: str) -> None:
        self.directory, self.slots, self.method = directory, slots, method

    def connect(self, bodies: list[Body]) -> None:
        self.bodies = [arguments_of(body) for body in bodies]
        self.connections = [open_socket(self.directory) for _ in range(self.slots)]
        script = (SCRIPT % SCRIPTS[self.method]).encode()
        digest = call(self.connections[0], b"SCRIPT", b"LOAD", script)
        count = len(self.bodies[0]) * len(ARGUMENTS)
        self.head = b"*%d\r\n" % (3 + count) + bulk(b"EVALSHA") + bulk(digest) + bulk(b"0")
        self.poll = select.epoll()
        self.slot_of = {}
        self.last = [b""] * self.slots
        for slot, connection in enumerate(self.connections):
            self.poll.register(connection, select.EPOLLIN)
            self.slot_of[connection.fileno()] = slot

    def send(self, slot: int, body: int, random: np.random.Generator) -> None:
        rows = self.bodies[body]
        rows["id"] = random.bit_generator.random_raw(2 * len(rows)).view("V16")
        rows["kept_at"] = b"%019d" % time.time_ns()
        self.last[slot] = self.head + rows.tobytes()
        self.connections[slot].sendall(self.last[slot])

    def wait(self) -> list[int]:
        done = []
        for handle, _ in self.poll.poll():
            slot = self.slot_of[handle]
            receive(self.connections[slot])
            done.append(slot)
        return done

    def resend(self, slot: int) -> int:
        self.connections[slot].sendall(self.last[slot])
        return int(receive(self.connections[slot]))


def arguments_of(body: Body) -> Any:
    """The rows of a request as Redis wants to read them: text between lengths and line ends."""
    fields: list[tuple[str, str]] = []
    heads = []
    for number, argument in enumerate(ARGUMENTS):
        head = b"$%d\r\n" % sum(np.dtype(kind).itemsize for kind in argument.values())
        heads.append(head)
        fields += [(f"head{number}", f"S{len(head)}"), *argument.items(), (f"end{number}", "S2")]
    rows = np.zeros(len(body.account), fields)
    for number, head in enumerate(heads):
        rows[f"head{number}"], rows[f"end{number}"] = head, b"\r\n"
    rows["account"] = body.names()
    rows["metric"] = rows["kept_metric"] = body.metric.astype("S1")
    rows["value"] = rows["kept_value"] = body.value.astype("S3")
    return rows


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def open_socket(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(directory / SOCKET))
    return connection


def receive(connection: socket.socket) -> bytes:
    """An answer that fits one piece: a number, a short text, or empty where there is none."""
    answer = connection.recv(RECEIVE_SIZE)
    while not answer.endswith(b"\r\n"):
        answer += connection.recv(RECEIVE_SIZE)
    if answer.startswith(b"-"):
        raise RuntimeError(answer.decode())
    if answer.startswith(b"$"):
        return answer.split(b"\r\n")[1]
    return answer[1:-2]


def call(connection: socket.socket, *words: bytes) -> bytes:
    connection.sendall(b"*%d\r\n" % len(words) + b"".join(map(bulk, words)))
    return receive(connection)


def verify(directory: Path, shape: Shape, measured: Measurement, method: str) -> bool:
    """Whether every total, and the number of events, is what the clients sent."""
    found = np.zeros(shape.accounts * shape.metrics, np.int64)
    events = 0
    connection = open_socket(directory)
    for number in range(shape.accounts):
        name = account_name(number)
        for metric in range(shape.metrics):
            total = call(connection, b"HGET", b"t" + name, b"%d" % metric)
            found[number * shape.metrics + metric] = int(total or 0)
        if method == "hashes":
            events += int(call(connection, b"HLEN", b"e" + name))
    if method == "keys":
        events = int(call(connection, b"DBSIZE")) - len(set(np.flatnonzero(found) // shape.metrics))
    connection.close()
    sums_equal = bool((found == measured.sums).all())
    return sums_equal and events == measured.sent and measured.resent_stored == 0


@contextmanager
def server(parent: Path) -> Iterator[Path]:
    """A fresh Redis in a directory of its own, which is also where its socket is."""
    with peer_directory(parent, "rd-", USER) as (directory, identity):
        command = [find_program("redis-server", INSTALL), "--unixsocket", str(directory / SOCKET)]
        command += ["--unixsocketperm", "777", "--dir", str(directory)]
        for key, value in SETTINGS.items():
            command += [f"--{key}", value]
        with running(command, directory, identity) as process:
            await_server(process, lambda: open_socket(directory).close())
            yield directory


def run_redis(
    shape: Shape, connections: int, method: str = "keys", parent: Path = Path("/tmp")
) -> dict[str, Any]:
    """Measure a fresh server; connections are spread over client processes. Verified."""
    processes = min(2, connections)
    slots = connections // processes
    with server(parent) as directory:
        measured = run_clients(lambda: RedisPeer(directory, slots, method), shape, processes)
        verified = verify(directory, shape, measured, method)
        log = directory_size(directory / "appendonlydir")
    found = subprocess.run(["redis-server", "--version"], capture_output=True, text=True)
    return {
        "peer": "redis",
        "version": found.stdout.split()[2].removeprefix("v="),
        "method": method,
        "batch": shape.batch,
        "connections": connections,
        "verified": verified,
        "log_bytes_per_event": round(log / measured.sent, 1),
        **measured.document(),
    }
