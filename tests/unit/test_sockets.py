"""The front door: what ZeroMQ takes of answers ahead of a client."""

from __future__ import annotations

import zmq

from meterd.actors.frames import sockets

REQUESTS = 10_000
ANSWER = bytes(1_000)


def test_a_client_with_many_requests_in_flight_loses_no_answer() -> None:
    """It reads nothing meanwhile, and the system takes far less ahead of it than all of them."""
    context = zmq.Context()
    server = sockets.client_listener("tcp://127.0.0.1:0", REQUESTS)
    client = context.socket(zmq.DEALER)
    try:
        client.setsockopt(zmq.RCVHWM, 1)
        client.setsockopt(zmq.RCVBUF, 4_096)
        client.connect(server.getsockopt_string(zmq.LAST_ENDPOINT))
        client.send(b"")
        sender, _ = server.recv_multipart()
        for _ in range(REQUESTS):
            sockets.send(server, [sender, ANSWER], sockets.NOBLOCK)  # zmq.Again: one is lost
        assert [client.recv() for _ in range(REQUESTS)] == [ANSWER] * REQUESTS
    finally:
        client.close(0)
        server.close(0)
        context.term()
