"""A node on an older copy of its own directory is refused, also when all nodes were stopped."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from meterd.actors.replicating.heard_file import HEARD_FILE
from meterd.client import Client, Event
from meterd.core.log.scan import FileScan
from meterd.protocol.log_format import ACTIVE_NAME
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
                    lambda one=one: heard_of(one.data_dir, 3) > last_record(older),
                    "they keep what they hear",
                    SECONDS,
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


def heard_of(data_dir: Path, number: int) -> int:
    """Up to which block a node's file says that another one has written."""
    try:
        members = json.loads((data_dir / HEARD_FILE).read_bytes())["members"]
        _, block, _ = members[str(member_id(number, 0))]
    except (FileNotFoundError, KeyError):
        return 0
    return int(block)


def last_record(data_dir: Path) -> int:
    """The last record in the active log file of a stopped node: what the engine calls a block."""
    path = data_dir / ACTIVE_NAME
    scan = FileScan(str(path), memoryview(path.read_bytes()), active=True)
    return max(record.sequence for block in scan for record in block.records)
