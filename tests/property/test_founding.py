"""Founding: however nodes start, stop and lose their disks, one list makes one cluster."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.cluster import founding as rules
from meterd.core.cluster.founding import AskToBeAdded, Founding, GiveUp, Make, Reply, Take, Wait
from meterd.core.cluster.members import FIRST_DIRECTORY, REMOVED, Members, first
from meterd.protocol.errors import ChangeRefused

ADD = {"op": "node_add", "peer_address": "", "client_address": ""}


def reply(state: str = rules.EMPTY, founder: int = 1, **fields: Any) -> Reply:
    return Reply(state, founder, **fields)


def asking(node: int, bootstrap: str, *heard: tuple[int, Reply]) -> rules.Decision:
    founding = Founding(node, (1, 2, 3), bootstrap)
    assert isinstance(founding.decide(0.0), Wait)
    for source, said in heard:
        founding.hear(source, said, 0.1)
    return founding.decide(0.2)


def test_the_founder_makes_a_cluster_when_all_others_are_empty() -> None:
    assert isinstance(asking(1, "auto", (2, reply())), Wait)
    assert isinstance(asking(1, "auto", (2, reply()), (3, reply())), Make)
    assert isinstance(asking(2, "auto", (1, reply()), (3, reply())), Wait)
    assert isinstance(asking(1, "join", (2, reply()), (3, reply())), Wait)


def test_what_was_said_long_ago_does_not_count() -> None:
    founding = Founding(1, (1, 2, 3), "auto")
    founding.hear(2, reply(), 0.0)
    founding.hear(3, reply(), rules.FRESH_SECONDS + 0.1)
    assert isinstance(founding.decide(rules.FRESH_SECONDS + 0.2), Wait)


def test_new_waits_a_second_for_who_would_say_no() -> None:
    founding = Founding(1, (1, 2, 3), "new")
    assert isinstance(founding.decide(0.0), Wait)
    assert isinstance(founding.decide(rules.NEW_SECONDS), Make)
    said = reply(rules.HAS_DATA, cluster="aa", verdict=rules.UNKNOWN)
    given_up = asking(1, "new", (2, said))
    assert isinstance(given_up, GiveUp) and "aa" in given_up.reason


def test_lists_that_name_different_founders_make_no_cluster() -> None:
    given_up = asking(2, "auto", (3, reply(founder=2)))
    assert isinstance(given_up, GiveUp) and "same --peers" in given_up.reason


def test_peers_of_two_clusters_are_refused() -> None:
    one, two = (reply(rules.HAS_DATA, cluster=c, verdict=rules.UNKNOWN) for c in ("a", "b"))
    assert isinstance(asking(1, "auto", (2, one), (3, two)), GiveUp)


def test_what_the_cluster_says_of_the_asker_is_done() -> None:
    def told(verdict: str, **fields: Any) -> rules.Decision:
        said = reply(rules.HAS_DATA, cluster="aa", verdict=verdict, **fields)
        return asking(3, "auto", (2, said))

    assert told(rules.GIVEN, identity={"x": 1}) == Take({"x": 1})
    assert told(rules.UNKNOWN) == AskToBeAdded((2,))
    assert isinstance(told(rules.WAIT), Wait)
    assert isinstance(told(rules.ASK_FOUNDER), Wait)
    founding = Founding(3, (1, 2, 3), "auto")
    founding.hear(2, reply(rules.HAS_DATA, cluster="aa", verdict=rules.TAKEN), 0.0)
    assert isinstance(founding.decide(0.0), Wait)
    founding.hear(2, reply(rules.HAS_DATA, cluster="aa", verdict=rules.TAKEN), rules.TAKEN_SECONDS)
    taken = founding.decide(rules.TAKEN_SECONDS)
    assert isinstance(taken, GiveUp) and "node recover 3" in taken.reason


def test_only_the_founder_gives_the_first_identities() -> None:
    members = first([(n, f"{n}:1", "") for n in (1, 2, 3)])
    granted: dict[int, str] = {}

    def grant(node: int, directory: str) -> bool:
        return granted.setdefault(node, directory) == directory

    assert rules.judge(None, 1, 2, "d", grant)[0] == rules.WAIT
    assert rules.judge(members, 1, 2, "", grant)[0] == rules.WAIT
    assert rules.judge(members, 3, 2, "d", grant)[0] == rules.ASK_FOUNDER
    assert rules.judge(members, 1, 2, "d", grant) == (rules.GIVEN, 1)
    assert rules.judge(members, 1, 2, "d", grant) == (rules.GIVEN, 1)
    assert rules.judge(members, 1, 2, "e", grant)[0] == rules.TAKEN
    assert rules.judge(members, 2, 1, "e", grant)[0] == rules.TAKEN
    assert rules.judge(members, 1, 9, "e", grant)[0] == rules.UNKNOWN
    members.apply({"op": "node_recover", "node": 2})
    assert rules.judge(members, 1, 2, "e", grant)[0] == rules.UNKNOWN
    members.apply({**ADD, "node": 2, "peer_address": "2:1", "directory": "e"})
    assert rules.judge(members, 3, 2, "e", grant) == (rules.GIVEN, 2)
    members.apply({"op": "node_recover", "node": 1})
    # The grants are lost with the founder's directory: nobody knows who had what.
    assert rules.judge(members, 1, 3, "f", grant)[0] == rules.TAKEN


def test_nobody_waits_for_a_founder_that_was_removed() -> None:
    members = first([(n, f"{n}:1", "") for n in (1, 2, 3)])
    assert rules.judge(members, 3, 2, "d", lambda *_: True)[0] == rules.ASK_FOUNDER
    members.nodes[1] = members.nodes[1]._replace(state=REMOVED)
    assert rules.judge(members, 3, 2, "d", lambda *_: True)[0] == rules.TAKEN


class World:
    """Nodes of one list, their disks, and the cluster's log, which no disk of theirs loses."""

    def __init__(self, random: Random, count: int, bootstrap: str) -> None:
        self.random, self.bootstrap = random, bootstrap
        self.nodes = range(1, count + 1)
        self.asking: dict[int, Founding] = {}
        self.disks: dict[int, dict[str, Any]] = {n: {} for n in self.nodes}
        self.clusters: dict[str, Members] = {}
        self.holders: dict[tuple[str, int, int], str] = {}  # of incarnations
        self.directories = 0
        self.now = 0.0
        self.ended: set[int] = set()

    def start(self, node: int) -> None:
        self.ended.discard(node)
        disk = self.disks[node]
        if "identity" not in disk:
            if "directory" not in disk:
                self.directories += 1
                disk["directory"] = f"d{self.directories}"
            self.asking[node] = Founding(node, self.nodes, self.bootstrap)

    def stop(self, node: int) -> None:
        self.asking.pop(node, None)
        self.ended.add(node)

    def wipe(self, node: int) -> None:
        self.stop(node)
        self.disks[node] = {}

    def say(self, node: int, asker: int) -> Reply | None:
        """Return what `node` answers, unless it is not up."""
        if node in self.ended or (disk := self.disks[node]) == {}:
            return None
        if "identity" not in disk:
            return reply() if node in self.asking else None
        cluster, _ = disk["identity"]
        members = self.clusters[cluster] if self.random.random() < 0.8 else None
        grants = disk.setdefault("grants", {})

        def grant(number: int, directory: str) -> bool:
            given: str = grants.setdefault(number, directory)
            return given == directory

        directory = self.disks[asker].get("directory", "")
        verdict, incarnation = rules.judge(members, node, asker, directory, grant)
        identity = {"cluster": cluster, "incarnation": incarnation}
        return Reply(rules.HAS_DATA, 1, cluster, verdict, identity)

    def turn(self, node: int) -> None:
        founding = self.asking.get(node)
        if founding is None:
            return
        for other in self.nodes:
            if other != node and self.random.random() < 0.7:
                said = self.say(other, node)
                if said is not None and self.random.random() < 0.8:  # else the answer is lost
                    founding.hear(other, said, self.now)
        decision = founding.decide(self.now)
        directory = self.disks[node]["directory"]
        if isinstance(decision, Make):
            name = f"c{len(self.clusters)}"
            self.clusters[name] = first([(n, f"{n}:1", "") for n in self.nodes])
            self.become(node, name, 1)
        elif isinstance(decision, Take):
            self.become(node, decision.identity["cluster"], decision.identity["incarnation"])
        elif isinstance(decision, AskToBeAdded):
            (cluster,) = {
                self.disks[n]["identity"][0] for n in decision.nodes if self.disks[n]
            } or {""}
            if cluster:
                command = {**ADD, "node": node, "peer_address": f"{node}:1"}
                try:
                    self.clusters[cluster].apply({**command, "directory": directory})
                except ChangeRefused:
                    self.stop(node)
        elif isinstance(decision, GiveUp):
            self.stop(node)

    def become(self, node: int, cluster: str, incarnation: int) -> None:
        directory = self.disks[node]["directory"]
        holder = self.holders.setdefault((cluster, node, incarnation), directory)
        assert holder == directory, f"two directories are node {node}, incarnation {incarnation}"
        if self.random.random() < 0.8:  # else it dies before that is durable
            self.disks[node]["identity"] = (cluster, incarnation)
        self.stop(node)
        if "identity" in self.disks[node]:
            self.ended.discard(node)


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.integers(2, 5), st.sampled_from(["auto", "join"]))
def test_one_list_makes_one_cluster(random: Any, count: int, bootstrap: str) -> None:
    world = World(random, count, bootstrap)
    for _ in range(150):
        world.now += random.random()
        node = random.choice(world.nodes)
        what = random.random()
        if what < 0.2:
            world.start(node)
        elif what < 0.25:
            world.stop(node)
        elif what < 0.28:
            world.wipe(node)
        elif what < 0.3 and world.clusters:
            world.clusters[random.choice([*world.clusters])].apply(
                {"op": "node_recover", "node": node}
            )
        else:
            world.turn(node)
        having = {disk["identity"][0] for disk in world.disks.values() if "identity" in disk}
        assert len(having) <= 1, "two clusters at once"
    if bootstrap == "join":
        assert not world.clusters


@pytest.mark.parametrize("seed", range(20))
def test_nodes_that_all_start_are_all_in_the_end_members(seed: int) -> None:
    world = World(Random(seed), 3, "auto")
    for _ in range(400):
        world.now += 0.2
        for node in world.nodes:
            if node not in world.asking and "identity" not in world.disks[node]:
                world.start(node)
            world.turn(node)
    assert {disk["identity"] for disk in world.disks.values()} == {("c0", 1)} or len(
        world.clusters
    ) > 1
    members = world.clusters[world.disks[1]["identity"][0]]
    assert all(one.directory == FIRST_DIRECTORY for one in members.nodes.values())
