"""A node that gets SIGTERM has others lead first: clients see no error and hardly a pause."""

from __future__ import annotations

import signal

import pytest

from tests.support.cluster import Cluster
from tests.support.failover import Trials, leaders_of
from tests.support.node import Node
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 120.0
SEED = 8


def test_clients_hardly_notice_that_a_leader_stops() -> None:
    with Cluster(3) as cluster, Trials(cluster, SEED, print) as trials:
        stopped = trials.one(lambda: None, gently=True)
        killed = trials.one(lambda: None)
        print(f"all partitions took events again {stopped.served_seconds} s after SIGTERM,")
        print(f"and {killed.served_seconds} s after kill -9")
        assert stopped.affected > 0 and stopped.handed_over
        assert set(stopped.grown.values()) == {stopped.affected}
        assert stopped.miscounted == []
        assert stopped.calls > 0 and stopped.failures == []
        assert trials.check() == []


def test_all_nodes_stop_at_once_and_nobody_waits_for_others_that_stop() -> None:
    with Cluster(3) as cluster:
        led = {1, 2, 3}
        eventually(lambda: set(leaders_of(cluster.node(1)).values()) == led, "all lead", SECONDS)
        for node in cluster.nodes:
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
        for node in cluster.nodes:
            assert node.process is not None
            assert node.process.wait(SECONDS) == 0, node.log()


def test_no_actor_is_killed_although_others_do_not_commit_any_more() -> None:
    """What new leaders wrote here last is not known to be committed: usage waited for that."""
    with Cluster(3) as cluster:
        led = {1, 2, 3}
        eventually(lambda: set(leaders_of(cluster.node(1)).values()) == led, "all lead", SECONDS)
        for node in cluster.nodes[:2]:
            assert node.stop() == 0, node.log()
            assert "does not stop" not in node.log()


def test_a_node_alone_does_not_try() -> None:
    with Node() as node:
        assert node.stop() == 0
        assert "leadership" not in node.log()
