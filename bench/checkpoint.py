"""Saves checkpoints of many live totals under load: `python -m bench.checkpoint [--totals N]`.

A node gets N totals (accounts x 5 metrics in the current period), one event each.  Then events come
in batches of 500, for any of these totals, and beside them one event at a time; how long each of
those takes says whether anything stands still.  First without checkpoints, then with one after
another.  The sums of all totals are verified at the end.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.node import NO_CHECKPOINTS, Node, meterd_node, node_directory
from bench.storage import anonymous_bytes
from bench.support import fdatasync_us, percentiles_us, write_result
from meterd.client import AsyncClient, Client, Event, IngestResult

METRICS = 5
BLOCK = 5_000
BATCH = 500
FILLERS, LOADERS = 8, 3
CODES = np.array([f"m{place}" for place in range(METRICS)])


class Load:
    """Everything that is sent; every event has the value 1."""

    def __init__(self, address: str, totals: int) -> None:
        self._address = address
        self._accounts = totals // METRICS
        self.stored = 0
        self.waited: list[int] = []  # ns, of one event at a time

    def _count(self, result: IngestResult) -> None:
        self.stored += result.stored  # no await between reading and writing it

    def _columns(self, accounts: Any, metrics: Any, random: Any) -> dict[str, Any]:
        return {
            "account": np.char.add("account-", accounts.astype(str)),
            "metric": CODES[metrics],
            "value": np.ones(len(accounts), np.int64),
            "timestamp": np.full(len(accounts), time.time_ns()),
            "id": random.integers(0, 256, (len(accounts), 16), np.uint8),
        }

    async def fill(self) -> None:
        """One event for each total."""
        places = iter(range(0, self._accounts * METRICS, BLOCK))
        random = np.random.default_rng(1)
        async with AsyncClient([self._address], timeout=300) as client:

            async def sender() -> None:
                for first in places:
                    rows = np.arange(first, min(first + BLOCK, self._accounts * METRICS))
                    columns = self._columns(rows // METRICS, rows % METRICS, random)
                    self._count(await client.ingest_columns(**columns))

            await asyncio.gather(*(sender() for _ in range(FILLERS)))

    async def go_on(self, seconds: float) -> None:
        """Batches, and one event at a time beside them."""
        until, random = time.monotonic() + seconds, np.random.default_rng()
        async with AsyncClient([self._address], timeout=300) as client:

            async def batches() -> None:
                while time.monotonic() < until:
                    accounts = random.integers(0, self._accounts, BATCH)
                    columns = self._columns(accounts, accounts % METRICS, random)
                    self._count(await client.ingest_columns(**columns))

            await asyncio.gather(self._one_at_a_time(until), *(batches() for _ in range(LOADERS)))

    async def _one_at_a_time(self, until: float) -> None:
        async with AsyncClient([self._address], timeout=300) as client:
            number = 0
            while time.monotonic() < until:
                event = Event(f"account-{number % self._accounts}", "m0", 1)
                began = time.perf_counter_ns()
                self._count(await client.ingest([event]))
                self.waited.append(time.perf_counter_ns() - began)
                number += 1


async def checkpoints(node: Node, until: float) -> list[dict[str, Any]]:
    """Ask for one checkpoint after another."""
    found = []
    while time.monotonic() < until:
        found.append(await asyncio.to_thread(node.meterctl, "--timeout", "300", "checkpoint"))
    return found


async def phase(node: Node, totals: int, seconds: float, saving: bool) -> tuple[int, Any]:
    """Load the node for so long; return how many events were stored, and what was measured."""
    load = Load(node.address, totals)
    most, ended = 0, False

    async def watch() -> None:
        nonlocal most
        while not ended:
            most = max(most, await asyncio.to_thread(lambda: anonymous_bytes(node.pids())))
            await asyncio.sleep(0.2)

    watching = asyncio.create_task(watch())
    asked = asyncio.create_task(checkpoints(node, time.monotonic() + seconds)) if saving else None
    await load.go_on(seconds)
    saved = await asked if asked is not None else []
    ended = True
    await watching
    return load.stored, {
        "events_per_second": int(load.stored / seconds),
        "one_event_us": percentiles_us(load.waited) | {"max": round(max(load.waited) / 1000, 1)},
        "one_event_count": len(load.waited),
        "anonymous_bytes_max": most,
        "checkpoints": saved,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--totals", type=int, default=5_000_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    options = parser.parse_args()
    document: dict[str, Any] = {"totals": options.totals, "seconds": options.seconds}
    document["fdatasync_us"] = fdatasync_us(options.directory)
    with (
        node_directory(options.directory) as directory,
        meterd_node(directory, NO_CHECKPOINTS) as node,
    ):
        with Client([node.address]) as client:
            for code in CODES:
                client.put_metric(str(code), aggregation="sum")
        filling = Load(node.address, options.totals)
        asyncio.run(filling.fill())
        stored = filling.stored
        document["anonymous_bytes"] = anonymous_bytes(node.pids())
        node.meterctl("--timeout", "300", "checkpoint")
        for name, saving in (("without", False), ("with_checkpoints", True)):
            more, document[name] = asyncio.run(phase(node, options.totals, options.seconds, saving))
            stored += more
            print(name, document[name], flush=True)
        document["events"] = stored
        found = 0
        with Client([node.address], timeout=300) as client:
            for code in CODES:
                found += sum(int(row.value) for row in client.accounts(str(code)))
        if found != stored:
            raise RuntimeError(f"the totals sum up to {found}, not {stored}")
    print(f"wrote {write_result('checkpoint', document)}")


if __name__ == "__main__":
    main()
