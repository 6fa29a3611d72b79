"""The event generator: repeatable, in the promised shares, and of the kinds it promises."""

import io
import json
from collections import Counter

from tests.support.generator import METRICS, Generator, Mix
from tests.support.model import AGGREGATIONS, Model
from tests.support.periods import SECOND

NOW = 1_760_000_000 * SECOND
COUNT = 10_000


def test_the_same_seed_gives_the_same_bytes():
    files = [io.StringIO() for _ in range(3)]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        Generator(seed, NOW).write_ndjson(file, COUNT)
    assert files[0].getvalue() == files[1].getvalue() != files[2].getvalue()
    events = [json.loads(line) for line in files[0].getvalue().splitlines()]
    assert events == list(Generator(1, NOW).events(COUNT))


def test_every_status_comes_in_its_share():
    generator, model = Generator(3, NOW), Model()
    for metric in generator.metrics:
        model.put_metric(metric)
    statuses = Counter(model.ingest(event, NOW) for event in generator.events(COUNT))
    assert 0.95 * COUNT < statuses["stored", ""] < 0.985 * COUNT
    assert 0.007 * COUNT < statuses["duplicate", ""] < 0.013 * COUNT
    assert 0.007 * COUNT < statuses["conflict", ""] < 0.015 * COUNT
    reasons = {reason for status, reason in statuses if status == "rejected"}
    assert reasons == {"unknown_metric", "bad_value", "too_old", "too_far_ahead"}


def test_events_cover_what_the_contract_allows():
    events = list(Generator(4, NOW, Mix(accounts=300)).events(COUNT))
    assert {metric.aggregation for metric in METRICS} == set(AGGREGATIONS)
    assert {event["metric"] for event in events} > {metric.code for metric in METRICS}
    assert any(not event["account"].isascii() for event in events)
    assert any(event["account"].count("/") == 2 for event in events)
    assert {type(event.get("value")) for event in events} == {int, str, type(None)}
    assert {event.get("operation") for event in events} == {None, "add", "remove"}
    assert any("region" not in event.get("properties", {}) for event in events)
    times = [event["timestamp"] for event in events]
    assert times != sorted(times)
