"""Hashes that are made for many rows, or slices, side by side are those of each alone."""

from __future__ import annotations

import random
import uuid
from typing import Any

import numpy as np
import pytest

from meterd.core.kernels.index import PAYLOAD_MASK
from meterd.core.kernels.tables import DAY_NS
from meterd.core.staging import code_hash
from meterd.protocol import log_format
from meterd.protocol.log_format import Record
from tests.support.pipeline import KEY, Pipeline
from tests.support.siphash import siphash_words, words_of

NOW = 1_700_000_000_000_000_000
METRIC = {"code": "calls", "aggregation": "sum", "decimals": 2, "unit": "", "period": "month"}
TAG_MASK = ~int(PAYLOAD_MASK) & 2**64 - 1


def event(chance: random.Random, longest: int) -> dict[str, Any]:
    """An event whose texts have up to so many bytes; its id is a UUID or any text."""
    identifier = str(uuid.UUID(int=chance.getrandbits(128)))
    if chance.random() < 0.5:
        identifier = f"{chance.getrandbits(4 * chance.randint(1, min(longest, 64))):x}"
    made = {
        "metric": "calls",
        "account": "a" * chance.randint(0, longest - 1) + str(chance.randint(0, 9)),
        "id": identifier,
        "timestamp": NOW - chance.randint(0, DAY_NS),
        "value": chance.randint(-(10**6), 10**6),
    }
    if chance.random() < longest / 300:
        count = chance.randint(1, 3)
        made["properties"] = {f"k{n}": "v" * chance.randint(0, longest) for n in range(count)}
    return made


def expected(record: Record) -> list[tuple[int, int]]:
    """What memory keeps of each row's identity, by plain Python."""
    columns, found, start = log_format.columns(record), [], 0
    heap, code = columns.heap.tobytes(), code_hash(KEY, b"calls")
    rows = zip(
        columns.heap_end.tolist(), columns.value.tolist(), columns.timestamp.tolist(), strict=True
    )
    for end, value, timestamp in rows:
        account_end, id_size = start + 2 + heap[start], heap[start + 1]
        id_end = account_end + (id_size or 16)
        account, name = heap[start + 2 : account_end], heap[account_end:id_end]
        message = [1 | len(account) << 8, *words_of(account), 2 | id_size << 8, *words_of(name)]
        first, second = siphash_words(KEY, message)
        decimals, properties = 2, heap[id_end:end]
        while decimals and value % 10 == 0:
            value, decimals = value // 10, decimals - 1
        said = [code ^ (4 | decimals << 16 | len(properties) << 32)]
        said += [value % 2**64, timestamp % 2**64, *words_of(properties)]
        digest = siphash_words(KEY, said)[0] >> 32 << 16
        found.append((first, second & TAG_MASK | digest | timestamp // DAY_NS))
        start = end
    return found


@pytest.mark.parametrize(("count", "longest"), [(1, 16), (2_000, 16), (700, 32), (900, 120)])
def test_hashes_of_many_rows_are_those_of_each(count, longest):
    """Of few and many slices, of texts that are laid out, of longer ones, and of a mixture."""
    chance = random.Random(count)
    pipeline = Pipeline()
    pipeline.put(NOW, METRIC)
    [result] = pipeline.events(NOW, [event(chance, longest) for _ in range(count)])
    assert result.rejected == 0
    append = pipeline.appended[-1]  # whose chain was checked, slice by slice
    rows = expected(log_format.parse_frames(append.head, bytes(append.payload)))
    state = pipeline.state
    kept = list(map(tuple, state.tables.journal[: state.recent].tolist()))
    assert kept == list({row[0]: row for row in reversed(rows)}.values())[::-1]
    assert np.unique([first for first, _ in kept]).size == len(kept) == result.stored
