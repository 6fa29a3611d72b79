"""A client listener with its guard and nothing behind it, as a process of its own.

``python -m tests.support.guarded_listener``: prints its port; answers every well-formed request
with its body; prints its telemetry as JSON and ends when its standard input is closed.
"""

import json
import select
import sys
import time

import zmq

from meterd.actors.frames import sockets
from meterd.actors.listening.listener_guard import ListenerGuard
from meterd.actors.measuring.telemetry import Telemetry
from meterd.protocol.envelope import decode_request
from meterd.protocol.errors import RemoteProtocolError

MESSAGES_PER_TURN_MAX = 1_000
REQUESTS_MAX = 10_000


class Listener:
    """The part of the router that meets clients."""

    def __init__(self, connections_max: int) -> None:
        self.socket = sockets.client_listener("tcp://127.0.0.1:0", REQUESTS_MAX)
        self.port = int(self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self.telemetry = Telemetry("listener")
        self.guard = ListenerGuard(self.port, connections_max, self.telemetry)
        self.answer_size = 0  # bytes of every answer; 0: the request's body
        self.answers = 0

    def turn(self) -> None:
        """Take what waits."""
        for _ in range(MESSAGES_PER_TURN_MAX):
            try:
                frames = self.guard.receive(self.socket)
            except zmq.Again:
                return
            self.answer(frames)

    def answer(self, frames: list[bytes]) -> None:
        try:
            decode_request(frames[1:])
        except RemoteProtocolError as error:
            self.guard.strike(self.send([frames[0], b"error", error.code.encode()]))
            return
        if self.answer_size:
            frames = [*frames[:-1], bytes(self.answer_size)]
        if self.send(frames):
            self.answers += 1
            self.guard.answered(self.guard.source, frames)

    def send(self, frames: list[bytes]) -> bool:
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
            return True
        except zmq.ZMQError:
            return False

    def close(self) -> None:
        self.guard.close()
        self.socket.close()


def main() -> None:
    listener = Listener(int(sys.argv[1]) if len(sys.argv) > 1 else 4_096)
    print(listener.port, flush=True)
    poller = zmq.Poller()
    poller.register(listener.socket, zmq.POLLIN)
    due = 0.0
    while not select.select([sys.stdin], [], [], 0)[0]:
        now = time.monotonic()
        if now >= due:
            due = now + listener.guard.look(now, 0)
        poller.poll(max(0, int((due - time.monotonic()) * 1000)) + 1)
        listener.turn()
    print(json.dumps(listener.telemetry.snapshot()), flush=True)
    listener.close()
    sockets.close()


if __name__ == "__main__":
    main()
