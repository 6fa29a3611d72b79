"""Fills a node with months of events and asks what an operator asks: `python -m bench.storage`.

Events are made from a seed, block by block, so what each account must have, and any old event, can
be made again without keeping it: random UUIDs, Zipf accounts, five metrics, three dimensions
(region and plan belong to the account, the host is one of four), timestamps that move through the
days as events of a real system do.

Measured while it fills: rate and memory of each slice.  Then, after compaction: bytes on disk by
kind, memory, listings and odd-range totals (cold: the page cache is emptied before each, where that
is allowed), a restart, old ids sent again.  All answers are held against the model.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from bench.node import Node, meterd_node, node_directory
from bench.support import fdatasync_us, percentiles_us, write_result
from meterd.client import AsyncClient, Client
from meterd.core.housekeeping import inventory
from meterd.protocol.checkpoint_format import read_state

DAY_NS = 86_400_000_000_000
DAYS = 89
ACCOUNTS = 100_000
ZIPF = 1.1
METRICS = 5
DIMENSIONS = ("region", "plan", "host")
DIMENSION_VALUES = (5, 3, 4)
BLOCK = 5_000
IN_FLIGHT = 8
SLICES = 10
QUESTIONS = 200
OLD_IDS = 10_000
# What is kept for every event.
STORED = ("seg", "idx", "props", "run", "part")
INGEST = {"batch": 500, "warm_up": 3, "seconds": 8}
TEXTS = np.array([f"value-{number}" for number in range(max(DIMENSION_VALUES))])


class Block(NamedTuple):
    """The events of one request."""

    account: NDArray[np.int64]
    metric: NDArray[np.int64]
    value: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    id: NDArray[np.uint8]
    dimensions: list[NDArray[np.int64]]


class Events:
    """All events, by block."""

    def __init__(self, count: int, begin: int) -> None:
        self.count, self.begin = count, begin
        self.blocks = -(-count // BLOCK)
        weight = 1.0 / np.arange(1, ACCOUNTS + 1) ** ZIPF
        self._edges = np.cumsum(weight / weight.sum())
        self.names = np.array([f"account-{number:06d}" for number in range(ACCOUNTS)])

    def block(self, number: int) -> Block:
        random = np.random.default_rng((20_261, number))
        n = min(BLOCK, self.count - number * BLOCK)
        at = self.begin + int(DAYS * DAY_NS * number / self.blocks)
        account = np.minimum(np.searchsorted(self._edges, random.random(n)), ACCOUNTS - 1)
        region, plan, host = DIMENSION_VALUES
        return Block(
            account,
            random.integers(0, METRICS, n),
            random.integers(-1_000, 100_000, n),
            at + random.integers(-DAY_NS // 24, DAY_NS // 24, n),
            random.integers(0, 256, (n, 16), np.uint8),
            [account % region, account // region % plan, random.integers(0, host, n)],
        )

    def columns(self, number: int) -> dict[str, Any]:
        block = self.block(number)
        return {
            "account": self.names[block.account],
            "metric": np.array([f"m{place}" for place in range(METRICS)])[block.metric],
            "value": block.value,
            "exponent": 2,
            "timestamp": block.timestamp,
            "id": block.id,
            "properties": {
                key: TEXTS[values].tolist()
                for key, values in zip(DIMENSIONS, block.dimensions, strict=True)
            },
        }

    def of_accounts(self, accounts: list[int]) -> dict[int, Block]:
        """All events of some accounts, in any order: the model of their answers."""
        found: dict[int, list[Block]] = {account: [] for account in accounts}
        for number in range(self.blocks):
            block = self.block(number)
            for account in accounts:
                rows = np.flatnonzero(block.account == account)
                if len(rows):
                    columns = [column[rows] for column in block[:5]]
                    found[account].append(Block(*columns, [d[rows] for d in block.dimensions]))
        return {account: joined(blocks) for account, blocks in found.items()}


def joined(blocks: list[Block]) -> Block:
    columns = [np.concatenate([block[place] for block in blocks]) for place in range(5)]
    dimensions = [
        np.concatenate([block.dimensions[place] for block in blocks])
        for place in range(len(DIMENSIONS))
    ]
    return Block(*columns, dimensions)


def anonymous_bytes(processes: list[psutil.Process]) -> int:
    """Memory of all these processes that no file stands behind, shared pages counted once."""
    total = 0
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) * 1024
    return total


async def send(address: str, events: Events, blocks: Iterator[int]) -> int:
    """Send blocks, some at once; return how many events were stored."""
    stored = 0
    async with AsyncClient([address], timeout=300) as client:

        async def sender() -> None:
            nonlocal stored
            for number in blocks:
                found = await client.ingest_columns(**events.columns(number))
                stored += found.stored

        await asyncio.gather(*(sender() for _ in range(IN_FLIGHT)))
    return stored


def fill(node: Node, events: Events) -> list[dict[str, Any]]:
    """Send all events; rate and memory after each slice."""
    slices = []
    edges = [events.blocks * place // SLICES for place in range(SLICES + 1)]
    for first, last in pairwise(edges):
        began = time.monotonic()
        stored = asyncio.run(send(node.address, events, iter(range(first, last))))
        seconds = time.monotonic() - began
        wanted = min(last * BLOCK, events.count) - first * BLOCK
        if stored != wanted:
            raise RuntimeError(f"{stored} of {wanted} events were stored")
        slices.append(
            {
                "events_per_second": int(wanted / seconds),
                "anonymous_bytes": anonymous_bytes(node.pids()),
            }
        )
        print(slices[-1], flush=True)
    return slices


def compact(node: Node) -> dict[str, Any]:
    """Have everything compacted, and wait for it."""
    began = time.monotonic()
    node.meterctl("checkpoint")
    found = node.meterctl("--timeout", "3600", "compact", "--all")
    return {"seconds": round(time.monotonic() - began, 1), "job": found}


def disk_bytes(directory: Path) -> dict[str, int]:
    """Allocated bytes by kind of file.

    `replaced`: segments and identities that others have replaced, and that stay for
    `storage.copy_grace`, and second names of what is counted already.
    """
    names = [path.name for path in directory.iterdir()]
    state = read_state((directory / "checkpoint.bin").read_bytes())
    live = set(inventory.identity_files(state))
    segments = set(inventory.whole_segments(names))
    live |= {name for name in names if inventory.segment_of(name) in segments}
    kinds = dict.fromkeys(("seg", "idx", "props", "run", "part", "log", "replaced", "other"), 0)
    for path in directory.iterdir():
        kind = path.suffix[1:] if path.suffix[1:] in kinds else "other"
        if kind in STORED and path.name not in live:
            kind = "replaced"
        kinds[kind] += path.stat().st_blocks * 512
    return kinds


def drop_caches() -> bool:
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def ask(node: Node, events: Events, model: dict[int, Block], cold: bool) -> dict[str, Any]:
    """Listings and odd-range totals of ordinary accounts and of the largest, all checked."""
    random = np.random.default_rng(5)
    taken: dict[str, list[int]] = {"listing": [], "total": [], "largest_total": []}
    with Client([node.address], timeout=300) as client:
        client.metrics()
        for turn in range(QUESTIONS // (20 if cold else 1)):
            for largest in (False, True):
                account = 0 if largest else int(random.choice(sorted(model)[1:]))
                block, name = model[account], str(events.names[account])
                metric = int(random.integers(0, METRICS))
                start = events.begin + int(random.integers(0, 40 * DAY_NS)) + turn
                end = start + int(random.integers(DAY_NS, 45 * DAY_NS))
                if cold and not drop_caches():
                    return {}
                began = time.perf_counter_ns()
                answer = client.usage(name, f"m{metric}", start=start, end=end)
                taken["largest_total" if largest else "total"].append(
                    time.perf_counter_ns() - began
                )
                rows = (block.metric == metric) & (block.timestamp >= start)
                rows &= block.timestamp < end
                wanted = int(block.value[rows].sum())
                if int(answer.value * 100) != wanted:
                    raise RuntimeError(f"{name} m{metric} {start} {end}: {answer} not {wanted}")
                if largest:
                    continue
                if cold:
                    drop_caches()
                began = time.perf_counter_ns()
                page = [event for event, _ in zip(client.events(name), range(100), strict=False)]
                taken["listing"].append(time.perf_counter_ns() - began)
                times = np.sort(block.timestamp)[: len(page)].tolist()
                if [event.timestamp for event in page] != times:
                    raise RuntimeError(f"events of {name} are not what was sent")
    return {name: percentiles_us(times) for name, times in taken.items()}


def old_ids(node: Node, events: Events) -> dict[str, int]:
    """Send old events again, all must be duplicates, and new ones, all must be stored."""
    random = np.random.default_rng(6)
    found = {"duplicate": 0, "stored": 0}
    with Client([node.address], timeout=300) as client:
        for number in random.choice(events.blocks, min(events.blocks, OLD_IDS // 50), False):
            columns, rows = events.columns(int(number)), slice(0, 50)
            old = {
                key: value[rows] if isinstance(value, np.ndarray) else value
                for key, value in columns.items()
            }
            old["properties"] = {k: v[rows] for k, v in columns["properties"].items()}
            found["duplicate"] += client.ingest_columns(**old).duplicate
            old["id"] = random.integers(0, 256, old["id"].shape, np.uint8)
            found["stored"] += client.ingest_columns(**old).stored
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    parser.add_argument("--no-compaction", action="store_true")
    options = parser.parse_args()
    events = Events(options.events, time.time_ns() - DAYS * DAY_NS + DAY_NS // 12)
    document: dict[str, Any] = {"events": options.events, "accounts": ACCOUNTS}
    document["fdatasync_us"] = fdatasync_us(options.directory)
    chosen = [0, *np.random.default_rng(7).choice(np.arange(1, 5_000), 20, False).tolist()]
    with node_directory(options.directory) as directory:
        data = directory / "data"
        with meterd_node(directory) as node:
            with Client([node.address]) as client:
                for place in range(METRICS):
                    client.put_metric(
                        f"m{place}", aggregation="sum", decimals=2, dimensions=list(DIMENSIONS)
                    )
            document["filling"] = fill(node, events)
            if not options.no_compaction:
                document["compaction"] = compact(node)
            document["disk_bytes"] = kinds = disk_bytes(data)
            stored = sum(kinds[kind] for kind in STORED)
            document["bytes_per_event"] = round(stored / options.events, 2)
            document["anonymous_bytes"] = anonymous_bytes(node.pids())
            model = events.of_accounts(chosen)
            document["warm_us"] = ask(node, events, model, cold=False)
            document["cold_us"] = ask(node, events, model, cold=True)
            print({key: document[key] for key in list(document)[-6:]}, flush=True)
            document["ingest"] = ingest = {"full": node.bench(**INGEST)["events_per_second"]}
        with meterd_node(directory) as node:
            document["restart_seconds"] = round(node.ready_seconds, 2)
            document["old_ids"] = old_ids(node, events)
            ingest["full_after_restart"] = node.bench(**INGEST)["events_per_second"]
    with node_directory(options.directory) as directory, meterd_node(directory) as node:
        ingest["empty"] = node.bench(**INGEST)["events_per_second"]
    print({key: document[key] for key in list(document)[-3:]}, flush=True)
    print(f"wrote {write_result('storage', document)}")


if __name__ == "__main__":
    main()
