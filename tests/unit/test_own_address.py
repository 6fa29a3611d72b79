"""A node says where it is when the members do not, and only when that is certain."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import msgpack

from meterd.actors.frames.bundle import unbundle
from meterd.actors.options import Node
from meterd.actors.replicating.own_address import AGAIN_SECONDS, AGAIN_SECONDS_MAX, OwnAddress
from meterd.core.cluster.members import Members, first
from meterd.protocol.envelope import decode_request_header
from meterd.protocol.messages import check_request

NODE = Node(id=1, advertise="one", port=7001, peers="2:two:8001")
ALONE = first([(1, "", "")])


def engine(leader: int = 2, last: int = 7, heard: int = 7) -> Any:
    view = SimpleNamespace(leader=leader, last=last, leader_commit=heard)
    return SimpleNamespace(view=lambda _group: view)


def changed(*commands: dict[str, Any]) -> Members:
    members = Members.from_bytes(ALONE.to_bytes())
    for command in commands:
        members.apply(command)
    return members


def added(node: int, address: str) -> dict[str, Any]:
    said = {"peer_address": f"{address}:8001", "client_address": f"{address}:7001"}
    return {"op": "node_add", "node": node, "directory": "d" * (node > 1), **said}


def test_it_is_what_an_operator_would_say() -> None:
    said = OwnAddress(NODE).due(ALONE, engine(), 7, 0.0)
    assert said is not None
    assert said[0] == b"requests"
    ((_, raw, body),) = unbundle(said[1:])
    header = decode_request_header(raw)
    command = {"op": header.kind, **check_request(header.kind, body, header.lz4_size)}
    members = changed(command)
    assert members.nodes[1] == changed(added(1, "one")).nodes[1]
    assert msgpack.unpackb(body)["peer_address"] == "one:8001"


def test_it_waits_until_what_is_known_is_the_newest() -> None:
    own = OwnAddress(NODE)
    assert own.due(None, engine(), 7, 0.0) is None
    assert own.due(ALONE, engine(leader=0), 7, 0.0) is None
    assert own.due(ALONE, engine(last=8), 7, 0.0) is None
    assert own.due(ALONE, engine(heard=8), 7, 0.0) is None
    assert own.due(ALONE, engine(), 7, 0.0) is not None


def test_it_leaves_alone_what_there_is() -> None:
    gone = changed(
        added(2, "two"),
        {"op": "node_state", "node": 2, "state": "voter"},
        {"op": "plan_move", "moves": [[group, [2], 2] for group in range(257)]},
        {"op": "node_state", "node": 1, "state": "removed"},
    )
    assert gone.nodes[1].peer_address == ""
    for members in (changed(added(1, "other")), gone, first([(2, "", "")])):
        assert OwnAddress(NODE).due(members, engine(), 7, 0.0) is None
    assert OwnAddress(Node(id=1)).due(ALONE, engine(), 7, 0.0) is None


def test_what_is_refused_is_said_again_later_each_time() -> None:
    own = OwnAddress(NODE)
    said = [second for second in range(2_000) if own.due(ALONE, engine(), 7, float(second))]
    gaps = [after - before for before, after in pairwise(said)]
    assert gaps[:3] == [AGAIN_SECONDS, 2 * AGAIN_SECONDS, 4 * AGAIN_SECONDS]
    assert max(gaps) == AGAIN_SECONDS_MAX
