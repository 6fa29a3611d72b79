"""A cluster of three whose nodes are killed, stopped and cut off loses and doubles nothing.

The short form of `python -m bench.cluster_faults`, which does this hundreds of times and judges how
long partitions are away.
"""

from __future__ import annotations

import pytest

from tests.support.cluster import Cluster
from tests.support.cluster_campaign import ENVIRONMENT, Campaign, Report
from tests.support.cluster_strokes import draw_plan

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow]

SEED = 3
KINDS = ("kill_node", "kill_actor", "kill_in_view_change", "pause_node", "isolate")


@pytest.fixture(scope="module")
def report() -> Report:
    """Run the campaign once."""
    with Cluster(3, ENVIRONMENT) as cluster:
        plan = draw_plan(SEED, dict.fromkeys(KINDS, 1), 3)
        found = Campaign(cluster, SEED, print).run(plan, checks=0)
        if found.violations:
            print(cluster.log())
        return found


def test_nothing_breaks_the_contract(report: Report) -> None:
    assert report.violations == []
    assert (report.missing, report.doubled) == (0, 0)


def test_every_fault_came_while_clients_waited(report: Report) -> None:
    """And there was something to lose."""
    assert sorted(one.stroke.kind for one in report.struck) == sorted(KINDS)
    assert report.counters["events acknowledged"] > 1_000
    assert report.counters["totals read meanwhile"] > 0
    assert report.counters["ops compared"] > 256
    assert report.kills.total() == 1 + 1 + 2 + 3  # of each kind, and of all nodes at the end
    assert report.partitions == 1
