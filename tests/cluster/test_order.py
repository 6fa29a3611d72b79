"""One event refused and one stored under the same identity: which came first decides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meterd.client import Client, Event
from tests.support.node import Node

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Node() as node, node.client() as one:
        one.put_metric("known", aggregation="sum")
        yield one


def test_a_refused_event_before_the_stored_one_claims_nothing(client: Client) -> None:
    """Refused rows travel beside the record and are judged in the order of the request."""
    result = client.ingest([Event("a", "unknown", id="1"), Event("a", "known", id="1")])
    assert [(item.index, item.status) for item in result.items] == [(0, "rejected")]
    assert result.stored == 1


def test_a_refused_event_behind_the_stored_one_conflicts(client: Client) -> None:
    result = client.ingest([Event("a", "known", id="2"), Event("a", "unknown", id="2")])
    assert [(item.index, item.status) for item in result.items] == [(1, "conflict")]
    assert result.stored == 1


def test_the_first_of_many_decides(client: Client) -> None:
    """Both kinds at once, in several accounts, so that the rows lie in several partitions."""
    accounts = [f"account-{n}" for n in range(40)]
    first = [Event(account, "unknown", id="x") for account in accounts[:20]]
    stored = [Event(account, "known", id="x") for account in accounts]
    last = [Event(account, "unknown", id="x") for account in accounts]
    result = client.ingest([*first, *stored, *last])
    statuses = {item.index: item.status for item in result.items}
    assert result.stored == 40
    assert [statuses[i] for i in range(20)] == ["rejected"] * 20
    assert [statuses[i] for i in range(60, 100)] == ["conflict"] * 40
