"""A node whose processes are killed while clients ingest loses nothing and counts nothing twice.

The short form of `python -m bench.kills`, which kills hundreds of times and judges how long the
node is away.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.kill_campaign import (
    ENVIRONMENT,
    SUPERVISOR,
    VICTIMS,
    Campaign,
    Report,
    draw_plan,
)
from tests.support.node import Node

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow]

SEED = 7
KILLS_EACH = 2


@pytest.fixture(scope="module")
def report() -> Report:
    """Run the campaign once."""
    with Node(environment=ENVIRONMENT) as node:
        found = Campaign(node, SEED, print).run(draw_plan(SEED, KILLS_EACH), checks=1)
        if found.violations:
            print(node.log())
        return found


def test_nothing_breaks_the_contract(report: Report) -> None:
    assert report.violations == []
    assert (report.missing, report.doubled) == (0, 0)


def test_every_victim_was_killed_while_clients_waited(report: Report) -> None:
    """And there was something to lose: retries, full log files, restarts."""
    killed = Counter(kill.victim for kill in report.kills)
    assert killed == {victim: KILLS_EACH + (victim == SUPERVISOR) for victim in VICTIMS}
    assert all(kill.in_flight > 0 for kill in report.kills)
    assert report.counters["events acknowledged"] > 1_000
    assert report.counters["answered duplicate"] > 0
    assert report.counters["log files"] > 1
    assert report.restarts["wal_writer"] > 0
