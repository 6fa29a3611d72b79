"""Checkpoints, retention, jobs and the archive of a real node, as operators use them."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meterd.client import Event
from meterd.protocol.errors import NotFound
from meterd.protocol.log_format import full_name
from tests.support.meterctl import call
from tests.support.node import Node
from tests.support.s3_server import BUCKET, S3Server
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DAY = 86_400_000_000_000
BATCH = 5_000
SMALL_FILES = {"METERD__WAL__SEGMENT_SIZE": "4MiB"}


class Shell:
    """Runs meterctl against a node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def run(self, *args: Any, exit_code: int = 0) -> str:
        code, out, self.errors = call("-n", self.node.address, *args)
        assert code == exit_code, self.errors + self.node.log()
        return out

    def json(self, *args: Any, exit_code: int = 0) -> Any:
        return json.loads(self.run("-o", "json", *args, exit_code=exit_code))


def fill(client: Any, batches: int, age_days: int = 0, first: int = 0) -> int:
    """Store many small events; return how many."""
    now = time.time_ns() - age_days * DAY
    for batch in range(first, first + batches):
        result = client.ingest_columns(
            account="acme",
            metric="calls",
            timestamp=[now] * BATCH,
            value=[1] * BATCH,
            id=[f"{age_days}-{batch}-{row}".ljust(100, "x") for row in range(BATCH)],
        )
        assert result.stored == BATCH
    return batches * BATCH


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(environment=SMALL_FILES) as made:
        yield made


def test_a_checkpoint_is_saved_when_somebody_asks_and_is_durable_then(node: Node) -> None:
    shell = Shell(node)
    with node.client() as client:
        client.put_metric("calls", "sum")
        events = fill(client, 1)
        saved = shell.json("checkpoint")
        assert saved["events"] == events
        assert saved["bytes"] == (node.data_dir / "checkpoint.bin").stat().st_size
        assert saved["seconds"] >= 0
        status = client.status()
        assert status["checkpoint"]["records"] == saved["records"] == status["log"]["records"]
    node.kill9()
    node.start()
    assert "log replayed events=0" in node.log().rsplit("identity checked", 1)[1]
    assert shell.json("checkpoint")["events"] == events
    assert (node.data_dir / "checkpoint.prev.bin").exists()
    assert "took" in shell.run("-o", "table", "checkpoint")


def test_the_retention_is_set_for_good_and_removes_what_is_past_it(node: Node) -> None:
    shell = Shell(node)
    with node.client() as client:
        client.put_metric("calls", "sum")
        old = fill(client, 12, age_days=40)
        fill(client, 1)
        shown = shell.json("retention", "show")
        assert (shown["days"], shown["origin"], shown["expired"]["files"]) == (90, "option", 0)
        shell.run("retention", "set", 30, exit_code=6)
        assert "--yes" in shell.errors
        shell.run("retention", "set", 0, exit_code=2)
        changed = shell.json("retention", "set", 30, "--yes")
        assert (changed["days"], changed["previous_days"]) == (30, 90)
        horizon = changed["horizon"]
        assert time.time_ns() - 31 * DAY < horizon <= time.time_ns() - 30 * DAY
        late = client.ingest([Event("acme", "calls", 1, time.time_ns() - 40 * DAY, "late")])
        assert [item.reason for item in late.items] == ["too_old"]
        eventually(lambda: shell.json("retention")["expired"]["files"] > 0, "the sweeper knows")
        assert shell.json("retention", "run", "--dry-run")["held"]["checkpoint"] > 0
        for _ in range(2):
            shell.json("checkpoint")
        eventually(lambda: not shell.json("retention")["expired"]["held"], "nothing is held")
        before = len(list(node.data_dir.glob("wal-*.log")))
        dry = shell.json("retention", "run", "--dry-run")
        assert 0 < dry["events"] <= old
        assert len(list(node.data_dir.glob("wal-*.log"))) == before
        ran = shell.json("retention", "run")
        assert {**ran, "dry_run": True} == dry
        assert len(list(node.data_dir.glob("wal-*.log"))) == before - ran["files"]
        raised = shell.json("retention", "set", 60)
        assert raised["horizon"] == horizon  # it never moves back
        again = client.ingest([Event("acme", "calls", 1, time.time_ns() - 40 * DAY, "again")])
        assert [item.reason for item in again.items] == ["too_old"]
    node.kill9()
    node.start()
    eventually(lambda: shell.json("retention")["days"] == 60, "what was set is known again")
    assert shell.json("retention")["origin"] == "command"
    assert shell.json("status")["nodes"][0]["horizon"] == horizon
    rows = shell.json("metrics", "--filter", "retention_segments_deleted")["metrics"]
    assert rows


def test_what_holds_a_log_file_is_said(node: Node) -> None:
    shell = Shell(node)
    with node.client() as client:
        client.put_metric("calls", "sum")
        fill(client, 20)
    status = shell.json("wal", "status", "--holders")
    assert status["files"] == len(status["segments"]) > 1
    assert status["bytes"] == sum(row["bytes"] for row in status["segments"])
    assert all("checkpoint" in row["held_by"] for row in status["segments"])
    assert status["position"]["file_number"] == status["last"] + 1
    assert status["archive"]["target"] == ""
    assert "checkpoint" in shell.run("-o", "table", "wal", "--holders")
    shell.run("wal", "archive", exit_code=5)


def test_jobs_are_listed_awaited_and_cancelled(tmp_path: Path) -> None:
    release = tmp_path / "release"
    script = tmp_path / "store.py"
    script.write_text(
        "import os, sys, time\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.05)\n"
        "sys.exit(int(open(sys.argv[1]).read()))\n"
    )
    command = {
        "METERD__ARCHIVE__COMMAND": f"{sys.executable} {script} {release} {{path}}",
        "METERD__ARCHIVE__CHECK_INTERVAL": "200ms",
    }
    with Node(environment=SMALL_FILES | command) as node, node.client() as client:
        shell = Shell(node)
        assert shell.json("jobs", "list") == {"jobs": []}
        shell.run("jobs", "show", 7, exit_code=5)
        shell.run("jobs", "wait", 7, exit_code=5)
        shell.run("jobs", "cancel", 7, exit_code=5)
        client.put_metric("calls", "sum")
        fill(client, 12)
        job = shell.json("wal", "archive", "--no-wait")["job"]
        shell.run("--timeout", 0.5, "jobs", "wait", job["id"], exit_code=8)
        assert f"jobs wait {job['id']}" in shell.errors
        shell.run("--timeout", 0.5, "wal", "archive", exit_code=8)
        assert [row["id"] for row in shell.json("jobs", "list", "--state", "running")["jobs"]] == [
            job["id"]
        ]
        shell.json("jobs", "cancel", job["id"])
        shell.run("jobs", "wait", job["id"], exit_code=1)
        release.write_text("3")
        failed = shell.json("wal", "archive", exit_code=1)["job"]
        assert failed["error"]["code"] == "archive_failed"
        assert "ended with 3" in shell.run("-o", "table", "jobs", "list")
        release.write_text("0")
        assert shell.json("wal", "archive")["job"]["state"] == "done"
        assert shell.json("wal")["archive"]["queue_files"] == 0
        with pytest.raises(NotFound):
            from meterd.client import questions

            client.run(questions.ask("job_show", {"id": 7}))


def logs_of(node: Node) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in node.data_dir.glob("wal-*.log")}


def copies_in(target: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in target.rglob("wal-*.log")}


def test_a_node_killed_while_it_archives_goes_on_where_it_was(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    options = {"METERD__ARCHIVE__TARGET": str(target), "METERD__ARCHIVE__CHECK_INTERVAL": "100ms"}
    node = Node(environment=SMALL_FILES | options)
    try:
        node.start()
        with node.client() as client:
            client.put_metric("calls", "sum")
        for round_ in range(4):
            with node.client() as client:
                fill(client, 10, first=10 * round_)
                # Whenever that is: before, between or behind the steps of a copy.
                eventually(lambda: copies_in(target), "archiving has begun")
                node.kill9()
            have = logs_of(node)
            for name, content in copies_in(target).items():
                assert have[name] == content, "what is there is whole"
            node.start()
        shell = Shell(node)
        eventually(lambda: shell.json("wal")["archive"]["queue_files"] == 0, "all is archived")
        assert copies_in(target) == logs_of(node)
        assert len(copies_in(target)) > 4
        assert not list(target.rglob("*.tmp"))
    finally:
        node.remove()


def test_an_actor_killed_while_it_archives_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    options = {"METERD__ARCHIVE__TARGET": str(target), "METERD__ARCHIVE__CHECK_INTERVAL": "100ms"}
    with Node(environment=SMALL_FILES | options) as node, node.client() as client:
        client.put_metric("calls", "sum")
        for step in range(3):
            fill(client, 10, first=10 * step)
            node.kill_actor("retention_sweeper", signal.SIGKILL)
        shell = Shell(node)
        eventually(lambda: copies_in(target) == logs_of(node), "all is archived", 60)
        eventually(lambda: shell.json("wal")["archive"]["queue_files"] == 0, "and known to be")


def test_a_bucket_takes_the_log_and_its_loss_is_an_alarm(tmp_path: Path) -> None:
    pytest.importorskip("boto3", reason="meterd[s3] is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    options = {"METERD__ARCHIVE__TARGET": f"s3://{BUCKET}/meterd"}
    with S3Server() as server:
        environment = SMALL_FILES | options | server.environment
        with Node(environment=environment) as node, node.client() as client:
            shell = Shell(node)
            client.put_metric("calls", "sum")
            fill(client, 12)
            assert shell.json("wal", "archive")["job"]["state"] == "done"
            bucket = server.client()
            listed = bucket.list_objects_v2(Bucket=BUCKET, Prefix="meterd/")["Contents"]
            assert len(listed) == len(logs_of(node))
            for stored in listed:
                body = bucket.get_object(Bucket=BUCKET, Key=stored["Key"])["Body"].read()
                assert logs_of(node)[stored["Key"].rsplit("/", 1)[1]] == body
            assert server.process is not None
            server.process.kill()
            fill(client, 12, first=12)
            shell.run("wal", "archive", exit_code=1)
            archive = shell.json("wal")["archive"]
            assert archive["last_failure"]["result"] == "failed"
            assert archive["queue_files"] > 0
            first = archive["through"] + 1
            held = shell.json("wal", "status", "--holders")["segments"]
            assert all("archive" in row["held_by"] for row in held if row["number"] >= first)
            assert (node.data_dir / full_name(first)).exists()
