"""A segment of many blocks, against numbers computed row by row."""

from __future__ import annotations

import random
import uuid
from dataclasses import replace

import numpy as np
import pytest

from meterd.core.kernels import gather
from meterd.core.kernels.gather import LogRows
from meterd.core.log import order as log_order
from meterd.core.log.index import OpenIndex
from meterd.core.log.order import LogOrders
from meterd.core.questions.gathering import Gathering
from meterd.core.questions.listing import wanted_events
from meterd.core.questions.question import Question
from meterd.core.segments import encoder as segment_encoder
from meterd.core.segments import listing as segment_listing
from meterd.core.segments import merging as segment_merging
from meterd.core.segments.data import NO_ACCOUNTS, Runs
from meterd.core.segments.encoder import SegmentEncoder
from meterd.core.segments.merging import Merge
from meterd.protocol.errors import Corrupt
from meterd.protocol.limits import I64_MIN
from meterd.protocol.segment_format import BLOCK_ROWS, FileHeader
from tests.support.log_builder import LoggedEvent
from tests.support.segments import (
    EVER,
    KEY,
    bitmap_of,
    cells_of,
    counted,
    encoded,
    fed,
    listed,
    logged,
    opened,
    registry_of,
)

REGISTRY = registry_of(3)
ACCOUNTS = ["big", *(f"small-{number:03d}" for number in range(150)), "big/one", "big/two", "bih"]
ROWS = 14_000


@pytest.fixture(scope="module")
def world():
    """A log with one account of several blocks, refused rows, and times out of order."""
    chance = random.Random(7)
    records = []
    made = 0
    while made < ROWS:
        size = min(chance.randint(1, 900), ROWS - made)
        records.append([event_of(chance, made + place) for place in range(size)])
        made += size
    builder = logged(records)
    refused = {place.row for place in builder.placed if chance.random() < 0.05}
    stored = [place for place in builder.placed if place.row not in refused]
    stored.sort(key=lambda place: place.row)
    files = encoded(builder, refused)
    return builder, refused, stored, files, opened(files)


def event_of(chance: random.Random, number: int) -> LoggedEvent:
    account = "big" if chance.random() < 0.7 else chance.choice(ACCOUNTS)
    timestamp = (number + chance.randint(-50, 50)) * 1_000 // 3 * 1_000
    identifier = str(uuid.UUID(int=chance.getrandbits(128)))
    if chance.random() < 0.1:
        identifier = f"text-{number}"
    region = {"region": f"r{chance.randint(0, 300)}"} if chance.random() < 0.9 else {}
    metric = 2 if chance.random() < 0.8 else chance.choice([1, 3])
    return LoggedEvent(
        account, identifier, metric, chance.randint(-500, 900), timestamp, "none", region
    )


def spans(stored) -> list[tuple[int, int]]:
    times = sorted(place.event.timestamp for place in stored)
    middle = times[len(times) // 2]
    return [
        (times[0], times[-1] + 1),
        (middle, times[-700]),
        (times[700], middle),
        (middle, middle),
    ]


@pytest.mark.parametrize("account", ["big", "small-007", "big/one", "nobody"])
@pytest.mark.parametrize("subtree", [False, True])
def test_cells_are_those_of_the_log_file(world, account, subtree):
    builder, refused, stored, _, reader = world
    index, data = OpenIndex(), builder.array()
    index.extend(data, len(data), KEY, "wal")
    rows = np.arange(builder.row, dtype=np.uint32)
    rows.flags.writeable = False
    log = LogRows(data, index.record_row, index.record_offset, bitmap_of(builder.row, refused))
    for start, end in spans(stored):
        base = Question("usage", account, subtree, "m2", start, end)
        edges = tuple(np.linspace(start, end, 9).astype(int).tolist()) if start < end else ()
        for question in (base, replace(base, group_by=("region",)), replace(base, edges=edges)):
            gathering = Gathering(question, REGISTRY.versions("m2"), KEY)
            gathering.count(log, rows)
            assert counted(reader, question, REGISTRY) == cells_of(gathering)


@pytest.mark.parametrize("limit", [1, 100, 20_000])
@pytest.mark.parametrize("subtree", [False, True])
def test_a_listing_begins_with_the_earliest(world, limit, subtree):
    _, _, stored, _, reader = world
    for start, end in spans(stored):
        question = Question("events", "big", subtree, "", start, end, limit=limit)
        wanted = [
            place.event.id
            for place in sorted(stored, key=lambda place: (place.event.timestamp, place.position))
            if place.event.account in (("big", "big/one", "big/two") if subtree else ("big",))
            and start <= place.event.timestamp < end
        ]
        assert [event["id"] for event in listed(reader, question, REGISTRY)] == wanted[:limit]


def test_a_page_begins_behind_its_cursor(world):
    _, _, stored, _, reader = world
    (start, end), *_ = spans(stored)
    mine = [place for place in stored if place.event.account == "big"]
    mine.sort(key=lambda place: (place.event.timestamp, place.position))
    for first in (0, 1, 3_000, len(mine) - 2):
        after = mine[first]
        cursor = f"e.{after.event.timestamp}.{after.position}"
        question = Question("events", "big", False, "", start, end, limit=5, after=cursor)
        wanted = [place.event.id for place in mine[first + 1 : first + 6]]
        assert [event["id"] for event in listed(reader, question, REGISTRY)] == wanted


def test_log_order_comes_back_with_every_event_as_it_was(world):
    _, _, stored, _, reader = world
    found = fed(reader, REGISTRY)
    assert len(found) == len(stored)
    for event, place in zip(found, stored, strict=True):
        logged_event = place.event
        assert event == {
            "account": logged_event.account,
            "metric": f"m{logged_event.metric}",
            "value": str(logged_event.value),
            "timestamp": logged_event.timestamp,
            "id": logged_event.id,
            "operation": "none",
            "properties": logged_event.properties,
        }


def test_positions_are_those_of_the_log(world):
    _, _, stored, _, reader = world
    by_row = {place.row: place.position for place in stored}
    found = 0
    question = Question("usage", "big", True, "m2", **EVER)
    wanted = Gathering(question, REGISTRY.versions("m2"), KEY).wanted
    for runs in reader.runs(wanted):
        for matches, ordinals in reader.found(runs, wanted):
            for match, ordinal in zip(matches.tolist(), ordinals.tolist(), strict=True):
                assert match[gather.POSITION] == by_row[ordinal]
                found += 1
    assert found > 2 * BLOCK_ROWS


def test_places_and_ordinals_are_two_names_of_one_thing(world):
    builder, _, _, _, reader = world
    for row in (0, 1, builder.row - 1, builder.row):
        assert reader.place_of(reader.ordinal_of(7, row)) == (7, row)
    assert reader.ordinal_of(7, builder.row + 5) == builder.row


def test_a_damaged_block_stops_those_who_need_it_and_nobody_else(world):
    """Found when it is read, not before; it names the file and the place."""
    *_, files, reader = world
    block = reader.index.blocks[2]
    damaged = bytearray(files[".seg"])
    damaged[int(block["offset"]) + 50] ^= 4
    hurt = opened(files | {".seg": bytes(damaged)})
    question = Question("usage", "big", False, "m2", **EVER)
    with pytest.raises(Corrupt, match=rf"seg-0+7-0+7\.seg at offset {block['offset']}"):
        counted(hurt, question, REGISTRY)
    other = replace(question, account="small-007")
    assert counted(hurt, other, REGISTRY) == counted(reader, other, REGISTRY)


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_all_rows_in_order_make_the_same_segment_again(world, batch, monkeypatch):
    """What a merge of segments needs: rows, ids, sets, accounts and slices come back whole."""
    monkeypatch.setattr(segment_merging, "BATCH_ROWS", batch * BLOCK_ROWS)
    monkeypatch.setattr(segment_encoder, "GROUP_ROWS", min(batch, 4) * BLOCK_ROWS)
    builder, refused, *_ = world
    files = encoded(builder, refused)
    reader = opened(files)
    merge = Merge([reader], np.array([1, 2], np.uint64))
    encoder = SegmentEncoder(FileHeader(7, 7, 7, 0))
    seg = [encoder.begin()]
    for batch in merge.batches():
        seg += map(bytes, encoder.add(batch))
    assert merge.facts().rows == reader.header.row_count
    again = encoder.finish(reader.log())
    assert b"".join(seg) == files[".seg"]
    assert b"".join(again.props) == files[".props"]
    assert b"".join(again.idx) == files[".idx"]


@pytest.mark.parametrize(("window", "piece"), [(1, 1), (700, 64), (5_000, 1 << 16)])
def test_the_order_of_the_log_is_read_in_windows(world, window, piece, monkeypatch):
    """Whatever pieces are asked for: the rows in log order, from windows of which few are kept."""
    monkeypatch.setattr(log_order, "WINDOW_ORDINALS", window)
    monkeypatch.setattr(log_order, "WINDOWS_MAX", 2)
    monkeypatch.setattr(segment_listing, "FIRST_ORDINALS", piece)
    monkeypatch.setattr(segment_listing, "PIECE_ORDINALS", 4 * piece)
    *_, reader = world
    count = reader.header.ordinal_count if window > 1 else 5
    wanted = wanted_events(Question("feed"), REGISTRY, I64_MIN)
    orders = LogOrders()
    pieces = list(segment_listing.in_log_order(reader, wanted, 1, count, orders))
    everything = Runs(np.array([[0, reader.header.row_count, 0, 0]], np.int64), NO_ACCOUNTS)
    expected = reader.rows_between(everything, 1, count)
    expected = expected[np.argsort(expected[:, 0])]
    assert np.concatenate([rows for rows, _ in pieces]).tolist() == expected.tolist()
    ends = [end for _, end in pieces]
    assert ends == sorted(ends) and ends[-1] == count
    assert len(orders._windows) <= 2
