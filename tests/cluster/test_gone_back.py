"""A node on an older copy of its own directory is refused, also when all nodes were stopped."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from meterd.actors.heard_file import HEARD_FILE
from meterd.client import Client, Event
from meterd.protocol.raft_messages import member_id
from tests.support.cluster import Cluster
from tests.support.cluster_logs import read_ops
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = 120.0
NOW = time.time_ns()


def send(client: Client, batch: int) -> None:
    made = [Event(f"account-{n}", "calls", 1, timestamp=NOW, id=f"{batch}-{n}") for n in range(300)]
    result = client.ingest(made)
    assert result.stored + result.duplicate == len(made), result


@pytest.mark.parametrize("killed", [False, True])
def test_all_stop_and_one_comes_back_older(killed: bool, tmp_path: Path) -> None:
    older = tmp_path / "older"
    with Cluster(3) as cluster:
        node = cluster.node(3)
        with cluster.client(timeout=SECONDS) as client:
            client.put_metric("calls", "sum")
            send(client, 1)
            assert node.stop() == 0
            shutil.copytree(node.data_dir, older, ignore=shutil.ignore_patterns("run"))
            node.start()
            for batch in range(2, 6):
                send(client, batch)
        if killed:
            for one in cluster.nodes[:2]:
                eventually(
                    lambda one=one: has_heard(one.data_dir, 3), "they keep what they hear", SECONDS
                )
            cluster.kill9()
        else:
            for one in cluster.nodes:
                assert one.stop() == 0, one.log()
        shutil.rmtree(node.data_dir)
        shutil.copytree(older, node.data_dir)
        held = read_ops(older)
        for one in cluster.nodes:
            one.start(wait=False)
        assert node.process is not None
        assert node.process.wait(SECONDS) == 79
        assert "node recover 3" in node.log()
        # It has promised nothing: its log is as it was put back.
        assert read_ops(node.data_dir) == held
        for one in cluster.nodes[:2]:
            one.ready()
        with cluster.client(timeout=SECONDS) as client:
            send(client, 6)
            assert client.usage("account-7", "calls").value == 6


def has_heard(data_dir: Path, number: int) -> bool:
    """Does a node's file know of blocks that another one has written since its last start?"""
    try:
        members = json.loads((data_dir / HEARD_FILE).read_bytes())["members"]
        _, block, before = members[str(member_id(number, 0))]
    except (FileNotFoundError, KeyError):
        return False
    return int(block) > int(before) > 0
