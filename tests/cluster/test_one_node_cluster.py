"""A single node answers what a cluster is asked, and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.meterctl import run
from tests.support.node import Node

pytestmark = pytest.mark.cluster


def meterctl(node: Node, *arguments: str, code: int = 0) -> Any:
    """Run a command; return its JSON, or its complaint."""
    ended, found = run(node, *arguments)
    assert ended == code, f"{arguments}: {ended} {found}"
    return found


def test_a_single_node_is_a_cluster_of_one(tmp_path: Path) -> None:
    with Node("--node-id", "7") as node:
        topology = meterctl(node, "topology", "--partitions")
        assert topology["without_leader"] == topology["under_replicated"] == 0
        (row,) = topology["nodes"]
        assert (row["node"], row["leads"], row["holds"], row["state"]) == (7, 256, 256, "voter")
        assert len(topology["partitions"]) == 257
        assert {one["leader"] for one in topology["partitions"]} == {7}
        consensus = meterctl(node, "consensus", "--group", "meta")
        (group,) = consensus["groups"]
        assert (group["role"], group["leader"], group["voters"]) == ("leader", 7, [7])
        assert meterctl(node, "replication") == {"reachable": 1, "configured": 1, "links": []}
        assert meterctl(node, "wait", "--for", "caught-up")["reachable"] == 1
        assert "no replica" in meterctl(node, "leader", "transfer", "3", "--to", "2", code=6)
        assert meterctl(node, "leader", "balance") == {"moved": []}
        assert meterctl(node, "rebalance", "plan")["moves"] == []
        added = meterctl(node, "node", "add", "9", "node9:8001")
        assert (added["node"]["state"], added["node"]["incarnation"]) == ("learner", 1)
        rows = meterctl(node, "node", "list", code=7)["nodes"]
        assert [(one["node"], one["state"], one["joined"]) for one in rows] == [
            (7, "voter", True),
            (9, "learner", False),
        ]
        assert "257 groups" in meterctl(node, "node", "remove", "7", code=6)
        assert meterctl(node, "node", "remove", "9")["node"]["state"] == "removed"
        node.restart()
        assert len(meterctl(node, "node", "list")["nodes"]) == 1
        again = meterctl(node, "node", "add", "9", "node9:8001")
        assert again["node"]["incarnation"] == 2


def test_a_node_of_a_cluster_does_not_start_alone(tmp_path: Path) -> None:
    node = Node("--node-id", "1", "--bootstrap", "new", "--peers", "2:127.0.0.1:19999")
    node.start(wait=False)
    try:
        from tests.support.waiting import eventually

        eventually(lambda: (node.data_dir / "node.json").exists(), "it is made", 60.0)
        node.kill9()
        alone = Node("--node-id", "1", data_dir=node.data_dir)
        alone.start(wait=False)
        assert alone.process is not None
        assert alone.process.wait(60) == 78, alone.log()
        assert "--peers" in alone.log()
        alone.remove()
        again = Node(
            "--node-id",
            "1",
            "--bootstrap",
            "new",
            "--peers",
            "2:127.0.0.1:19999",
            data_dir=node.data_dir,
        )
        again.start(wait=False)
        assert again.process is not None
        assert again.process.wait(60) == 79, again.log()
        again.remove()
    finally:
        node.remove()
