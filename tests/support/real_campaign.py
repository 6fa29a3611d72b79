"""A real node under load, through one fault after another.

Clients send numbered events without rest, through the faults as well.  What a node holds after a
fault must be the first so many of them, each once, and all that were acknowledged.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from meterd.client import Client
from meterd.protocol.body import pack
from meterd.protocol.envelope import RequestHeader, encode_request
from meterd.protocol.errors import MeterdError
from tests.support import steady_load
from tests.support.node import ROOT, Node
from tests.support.steady_load import SteadyLoad, check_prefix
from tests.support.waiting import eventually

SETTINGS = {
    "METERD__WAL__SEGMENT_SIZE": "4MiB",
    "METERD__WAL__RETENTION_DAYS": "0",
    "METERD__WAL__MIN_SEGMENTS": "1",
    "METERD__STORAGE__CHECKPOINT_EVENTS": "20000",
    "METERD__STORAGE__CHECKPOINT_INTERVAL": "2s",
    "METERD__STORAGE__COPY_GRACE": "0s",
    "METERD__COMPACTION__ENABLED": "false",
    "METERD__COMPACTION__IO_LIMIT": "8MiB",
    "METERD__BACKUP__IO_LIMIT": "16MiB",
    "METERD__DISK__STOP_FREE": "1MiB",
    "METERD__DISK__HARD_FREE": "0",
    "METERD__DISK__BALLAST": "0",
    "METERD__DISK__WARN_FREE": "1MiB",
    "METERD__DISK__WARN_FREE_RATIO": "0",
}
REST = 0.02


class StubbornLoad(SteadyLoad):
    """Sends what was not acknowledged again, whatever the answer was; holds still when told."""

    def __init__(self, address: str) -> None:
        super().__init__(address, rest=REST)
        self.still = threading.Lock()

    def _send(self, client: Client) -> None:
        with self.still:  # until all events of the batch are decided
            while not self._stop.is_set():
                try:
                    super()._send(client)
                    break
                except MeterdError:
                    self._stop.wait(REST)
        self._stop.wait(REST)  # so that others get the lock


class Campaign:
    """One node through many faults."""

    def __init__(self, node: Node, load: StubbornLoad, home: Path) -> None:
        self.node, self.load, self.home = node, load, home
        self.backups = home / "backups"
        self._context: zmq.Context[Any] = zmq.Context.instance()

    def fire(self, kind: str, **fields: Any) -> None:
        """Send a request whose answer nobody waits for."""
        socket = self.node.dealer(self._context)
        socket.setsockopt(zmq.LINGER, 1_000)
        socket.send_multipart(encode_request(RequestHeader(1, kind, 60_000), pack(fields)))
        socket.close()

    def after(self, seconds: float) -> None:
        """Let the moment come that was drawn."""
        threading.Event().wait(seconds)

    def kill_and_audit(self) -> None:
        self.node.kill9()
        acknowledged = self.load.acknowledged
        self.node.start()
        self.audit(acknowledged)

    def audit(self, acknowledged: int) -> None:
        """While nothing is sent, and all that was sent is acknowledged by now."""
        with self.load.still, self.node.client(timeout=60) as client:
            held = check_prefix(client, acknowledged)
            assert held == self.load.acknowledged, (held, self.load.acknowledged)
        eventually(lambda: self.load.acknowledged > held, "events are taken again", 60)

    def more(self, events: int) -> None:
        enough = self.load.acknowledged + events
        eventually(lambda: self.load.acknowledged >= enough, "events are taken", 60)


@contextmanager
def campaign(data_dir: Path | None = None, events: int = 5_000) -> Iterator[Campaign]:
    """A node under load that holds so many events."""
    home = Path(tempfile.mkdtemp(prefix="mreal", dir="/tmp"))
    try:
        with Node(data_dir=data_dir, environment=SETTINGS) as node:
            with Client([node.address]) as client:
                steady_load.put_metrics(client)
            with StubbornLoad(node.address) as load:
                made = Campaign(node, load, home)
                made.backups.mkdir()
                made.more(events)
                yield made
    finally:
        shutil.rmtree(home)


def meterctl(*arguments: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "bin" / "meterctl"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
