"""Starts real nodes that make one cluster, on ports of their own, and breaks what they need.

with Cluster() as cluster: all nodes are ready.  A cluster of one is a node without peers.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.node import STOP_SECONDS, Node
from tests.support.ports import free_ports
from tests.support.waiting import eventually

# A replication port is the application port and this.
REPLICATION_OFFSET = 1_000
# Set to anything: the files of the nodes stay when a campaign ends.
KEEP = "METERD_TEST_KEEP"
# A slow disk: the log's writer works a part of the time.
SLOW_STOPPED_SECONDS, SLOW_RUNNING_SECONDS = 0.06, 0.01


def peer(number: int, port: int) -> str:
    """Return how a list of peers names a node."""
    return f"{number}:127.0.0.1:{port + REPLICATION_OFFSET}"


class ClusterNode(Node):
    """One node of a cluster; `number` is its node id."""

    number = 0

    def pause(self) -> None:
        """Stop every process of it where it is."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    @contextmanager
    def slow_disk(self) -> Iterator[None]:
        """Make every write of the log take long, as a disk does that is busy or dying."""
        ended = threading.Event()

        def hinder() -> None:
            while not ended.is_set():
                pid = self.pids().get("wal_writer")
                for number, seconds in (
                    (signal.SIGSTOP, SLOW_STOPPED_SECONDS),
                    (signal.SIGCONT, SLOW_RUNNING_SECONDS),
                ):
                    try:
                        if pid:
                            os.kill(pid, number)
                    except ProcessLookupError:
                        break
                    time.sleep(seconds)

        thread = threading.Thread(target=hinder)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Links:
    """Which nodes may speak to which: a file of rules that nodes under test look at.

    `actors/replicating/link_faults.py` says what a line means.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heal()

    def cut(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Let nothing pass from the first to the second node of each pair."""
        beside = self.path.with_suffix(".tmp")
        rules = [f"{source}>{target}\n" for source, target in pairs]
        beside.write_text("".join(rules))
        beside.rename(self.path)

    def heal(self) -> None:
        """Let everything pass."""
        self.cut([])

    def isolate(self, node: int, nodes: Sequence[int]) -> None:
        """Cut a node off from all others."""
        others = [other for other in nodes if other != node]
        self.cut([(node, one) for one in others] + [(one, node) for one in others])


class Cluster:
    """`count` nodes, with the numbers 1, 2 …"""

    def __init__(
        self,
        count: int = 3,
        environment: Mapping[str, str] | None = None,
        data_dirs: Mapping[int, Path] | None = None,
        cuts: bool = True,
    ) -> None:
        """`data_dirs`: where some nodes keep their data, if not in a directory of their own.

        cuts: nodes look at `links` whenever they send; without it they are as an operator's.
        """
        self._cuts = cuts
        self.nodes: list[ClusterNode] = []
        self._environment = dict(environment or {})
        ports = dict(enumerate(free_ports(count, beside=REPLICATION_OFFSET), 1))
        self._peers = [peer(number, port) for number, port in ports.items()]
        self.links: Links
        for number, port in ports.items():
            flags = ["--peers", ",".join(self._peers)] if count > 1 else []
            self._make(number, port, flags, (data_dirs or {}).get(number))

    def _make(self, number: int, port: int, flags: list[str], data_dir: Path | None) -> ClusterNode:
        flags = ["--node-id", str(number), *flags]
        node = ClusterNode(*flags, data_dir=data_dir, environment=self._environment)
        node.number, node.port = number, port
        if not self.nodes:
            self.links = Links(node.home / "links")
        if self._cuts:
            node._environment["METERD_TEST_LINKS"] = str(self.links.path)
        self.nodes.append(node)
        return node

    def add(self) -> ClusterNode:
        """Make one more node, which will ask to join; it is not started."""
        number = len(self.nodes) + 1
        (port,) = free_ports(1, beside=REPLICATION_OFFSET)
        self._peers.append(peer(number, port))
        flags = ["--peers", ",".join(self._peers), "--bootstrap", "join"]
        return self._make(number, port, flags, None)

    @property
    def numbers(self) -> list[int]:
        return [node.number for node in self.nodes]

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    def node(self, number: int) -> ClusterNode:
        return self.nodes[number - 1]

    def start(self) -> Self:
        for node in self.nodes:
            node.start(wait=False)
        return self.ready()

    def ready(self) -> Self:
        """Wait until all nodes are."""
        for node in self.nodes:
            node.ready()
        return self

    def kill9(self) -> None:
        """End everything at once."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                os.killpg(node.process.pid, signal.SIGKILL)
        for node in self.nodes:
            if node.process is not None:
                node.process.wait()
        for node in self.nodes:
            eventually(node._is_gone, "all processes have gone", STOP_SECONDS)

    def client(self, **arguments: Any) -> Any:
        """Return a `Client` of the library that knows all nodes."""
        from meterd.client import Client

        return Client(self.addresses, **arguments)

    def log(self) -> str:
        """Return what all nodes have written."""
        return "".join(f"--- node {node.number}\n{node.log()}" for node in self.nodes)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            print(self.log())
            self.remove()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.log())
        self.remove()

    def remove(self) -> None:
        """End all nodes and remove their files, but those of a failure that is to be looked at."""
        if os.environ.get(KEEP):
            self.kill9()
            return
        for node in reversed(self.nodes):
            node.remove()
