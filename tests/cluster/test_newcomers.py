"""A node that was there first is killed before any checkpoint of it knows those that came since."""

from __future__ import annotations

import pytest

from meterd.actors.replicating.heard_file import HeardFile
from meterd.client import questions
from meterd.protocol.log_format import META_GROUP
from tests.cluster.test_growing import replicas, state_of
from tests.support.absence import applied_of
from tests.support.cluster import Cluster
from tests.support.meterctl import good
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 120.0
MOVED = 7


def test_it_finds_the_newcomers_whose_word_it_needs() -> None:
    """Its list does not name them, and its state is older than the log that does."""
    with Cluster(2) as cluster, cluster.client(timeout=SECONDS) as client:
        one = cluster.node(1)
        for node in (cluster.add(), cluster.add()):
            node.start()
            eventually(lambda n=node.number: state_of(one, n) == "learner", "it joins", SECONDS)  # type: ignore[misc]
            good(one, "node", "promote", str(node.number))
        moves = [[MOVED, [1, 3, 4], 3], [META_GROUP, [2, 3, 4], 3]]
        client.run(questions.ask("plan_move", {"moves": moves}))
        wanted = {group: voters for group, voters, _ in moves}
        eventually(
            lambda: wanted.items() <= replicas(one).items(), "the groups have moved", SECONDS
        )
        eventually(
            lambda: {3, 4} <= HeardFile(str(one.data_dir)).places.addresses.keys(),
            "it has kept where they are",
            SECONDS,
        )
        one.kill9()
        one.start()
        for group in wanted:
            eventually(lambda g=group: applied_of(one)[g] > 0, "it has all of it", SECONDS)  # type: ignore[misc]
