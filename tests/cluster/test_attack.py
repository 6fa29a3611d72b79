"""A real node under resource attacks, beside which one good client must not suffer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import siege
from tests.support.node import Node
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow]

MIB = 1 << 20
GROWTH_MAX = 64 * MIB
# Whoever has sent a good request may hold as much, up to another bound.
GROWTH_MAX_EARNED = 128 * MIB
SECONDS = 1.5
# A machine that runs tests has other things to do; a client that starves waits far longer.
P99_SECONDS_MAX = 1.0

ATTACKS = {
    "garbage": {"noise": 200, "noise_after_handshake": 200},
    "endless": {"endless": 200},
    "endless_small": {"endless_small": 200, "endless_trickle": 100},
    "half_frames": {"half_frame": 200},
    "oversized": {"oversized_frame": 200},
    "versions": {"old_version": 200, "wrong_version": 200},
    "floods": {"malformed": 100, "many_frames": 50, "abandoned": 100},
    "silent": {"silence": 200, "half_greeting": 200},
    "turncoats": {"turncoat": 200},
}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        siege.prepare(node.address)
        siege.serve_calmly(node.address, "warm", 1.0)
        yield node


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_good_client_is_served_and_memory_is_bounded(node: Node, attack: str) -> None:
    pids = node.pids()
    found = siege.besiege(node.address, pids, ATTACKS[attack], SECONDS)
    assert found.client.failures == []
    assert found.client.percentile(0.99) < P99_SECONDS_MAX
    assert found.memory.growth < (GROWTH_MAX_EARNED if attack == "turncoats" else GROWTH_MAX)
    assert node.pids() == pids, "an actor has died"
    assert all(kind["opened"] for kind in found.attack.values())


def test_evictions_are_counted_and_all_is_forgotten_afterwards(node: Node) -> None:
    siege.besiege(node.address, node.pids(), {"endless": 100, "half_frame": 1}, SECONDS)
    assert eventually(lambda: _number(node, "connections_evicted_total") > 0, "evictions")
    eventually(lambda: _number(node, "clients_connected") == 0, "nobody is connected")


def _number(node: Node, name: str) -> float:
    status, page = node.get("/metrics")
    assert status == 200
    lines = [line for line in page.splitlines() if line.startswith(f"billing_{name}")]
    assert lines
    return sum(float(line.rpartition(" ")[2]) for line in lines)
