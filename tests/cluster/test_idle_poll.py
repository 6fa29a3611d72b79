"""A node whose processors poll: it answers, its polling threads give way to all, and it stops."""

import os
from pathlib import Path

import pytest

from meterd.actors.machine.idle_poll import PROCESSORS_MAX, has_quota
from tests.support.node import Node

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def polling(node: Node) -> list[int]:
    """Return the router's threads that run only when nobody else wants to."""
    threads = Path(f"/proc/{node.pids()['router']}/task").iterdir()
    return [t for t in map(int, (p.name for p in threads)) if is_idle_class(t)]


def is_idle_class(thread: int) -> bool:
    return os.sched_getscheduler(thread) == os.SCHED_IDLE


@pytest.mark.parametrize("seconds", ["0s", "100ms"])
def test_a_node_answers_and_stops_while_its_processors_poll(seconds: str) -> None:
    with Node(environment={"METERD__NODE__IDLE_POLL": seconds}) as node:
        with node.client() as client:
            client.put_metric("calls", "count")
            for _ in range(20):
                assert client.usage("acme", "calls").count == 0
        processors = len(os.sched_getaffinity(0))
        expected = 0 if processors > PROCESSORS_MAX or has_quota() else processors
        assert len(polling(node)) == (expected if seconds != "0s" else 0)
        assert node.stop() == 0
