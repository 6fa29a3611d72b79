"""Ports for nodes under test.

They lie below those that the system gives to connections: a port that is free when it is chosen,
and is one of these, may be some client's own port when the node that shall have it starts.
Processes that test at the same time have each a part of them.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_SHARE = 22_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
FIRST = 10_000 + _WORKER * _SHARE
LAST = FIRST + _SHARE
TRIES_MAX = 1_000

# A port that was given and that nobody listens on yet is still somebody's.
_given: set[int] = set()


def free_ports(count: int, *, beside: int = 0) -> list[int]:
    """Return ports that nobody has or was given; those `beside` higher are free, too."""
    found: list[int] = []
    with ExitStack() as held:
        for _ in range(TRIES_MAX):
            if len(found) == count:
                return found
            port = random.randrange(FIRST, LAST - beside)
            wanted = {port, port + beside}
            if wanted & _given:
                continue
            try:
                for one in sorted(wanted):
                    held.enter_context(socket.create_server(("127.0.0.1", one)))
            except OSError:
                continue
            _given.update(wanted)
            found.append(port)
    raise RuntimeError(f"no {count} free ports")
