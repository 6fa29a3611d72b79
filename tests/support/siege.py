"""A node under attack: one good client beside hostile ones, and what the node's memory does.

The attack is a process of its own (`tests.support.attackers`), so it costs the node processor time,
as it would in life, and nothing else.  What is measured is what an operator cares about: whether
any request of the good client failed, how long they took, and the proportional memory (PSS) of all
processes of the node, sampled while it lasts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meterd.client import Client, Event
from meterd.protocol.errors import MeterdError
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLE_SECONDS = 0.05
# A request at a time, with a rest between: the client of an ordinary application.
REST_SECONDS = 0.002
METRIC = "siege"
DEADLINE_SECONDS = 10.0


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of these processes, shared pages counted once."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


class GoodClient(threading.Thread):
    """Stores an event, then asks for the total of its account, until told to stop."""

    def __init__(self, address: str, account: str) -> None:
        super().__init__()
        self._address = address
        self._account = account
        self._stop_wanted = threading.Event()
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.stored = 0

    def run(self) -> None:
        with Client([self._address], timeout=DEADLINE_SECONDS) as client:
            while not self._stop_wanted.is_set():
                self._try(lambda: self._store(client))
                self._try(lambda: self._ask(client))
                self._stop_wanted.wait(REST_SECONDS)

    def _try(self, request: Any) -> None:
        begin = time.perf_counter()
        try:
            request()
        except MeterdError as error:
            self.failures.append(repr(error))
        self.seconds.append(time.perf_counter() - begin)

    def _store(self, client: Client) -> None:
        result = client.ingest([Event(self._account, METRIC, 1)])
        if result.stored != 1:
            self.failures.append(repr(result))
        self.stored += result.stored

    def _ask(self, client: Client) -> None:
        value = client.usage(self._account, METRIC).value
        if value != self.stored:
            self.failures.append(f"{value} instead of {self.stored}")

    def finish(self) -> None:
        self._stop_wanted.set()
        self.join()

    def percentile(self, share: float) -> float:
        """Seconds, by nearest rank."""
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(len(ranked) * share))]


class MemoryWatch(threading.Thread):
    """Samples the memory of a node's processes until told to stop."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        super().__init__()
        self._pids = list(pids.values())
        self._stop_wanted = threading.Event()
        self.before = pss_bytes(self._pids)
        self.samples: list[int] = []

    def run(self) -> None:
        while not self._stop_wanted.wait(SAMPLE_SECONDS):
            self.samples.append(pss_bytes(self._pids))

    def finish(self) -> None:
        self._stop_wanted.set()
        self.join()
        self.samples.append(pss_bytes(self._pids))

    @property
    def growth(self) -> int:
        return max(self.samples) - self.before


@dataclass
class Siege:
    """What an attack did, and what it cost."""

    attack: dict[str, Any]
    client: GoodClient
    memory: MemoryWatch


def prepare(address: str) -> None:
    """Register the metric that good clients use."""
    with Client([address]) as client:
        client.put_metric(METRIC, "sum", decimals=0)


def serve_calmly(address: str, account: str, seconds: float) -> GoodClient:
    """Return a good client that has worked for some seconds with nobody in its way."""
    client = GoodClient(address, account)
    client.start()
    time.sleep(seconds)
    client.finish()
    return client


def besiege(
    address: str, pids: Mapping[str, int], counts: Mapping[str, int], seconds: float
) -> Siege:
    """Attack a node for some seconds with so many connections of each kind."""
    memory, client = MemoryWatch(pids), GoodClient(address, "-".join(counts)[:100])
    command = [sys.executable, "-m", "tests.support.attackers", address.rpartition(":")[2]]
    command += [str(seconds), *(f"{kind}={count}" for kind, count in counts.items())]
    client.start()
    eventually(lambda: client.seconds, "the client is served")
    memory.start()
    end = time.monotonic() + seconds
    try:
        attack = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        # Often nobody is left to attack with.  The client goes on, or few requests would be judged.
        time.sleep(max(0.0, end - time.monotonic()))
    finally:
        client.finish()
        memory.finish()
    return Siege(json.loads(attack.stdout), client, memory)
