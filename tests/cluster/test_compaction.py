"""Compaction of a real node: asked for, cancelled, waited for in vain, and killed in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_storage import SMALL_FILES, Shell, fill
from tests.support.node import Node
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

QUIET = {
    "METERD__COMPACTION__ENABLED": "false",
    "METERD__DISK__STOP_FREE": "1MiB",
    "METERD__DISK__HARD_FREE": "0",
    "METERD__DISK__BALLAST": "0",
}


def segments_of(node: Node) -> set[str]:
    return {path.name for path in node.data_dir.glob("seg-*.idx")}


def node_logs(node: Node) -> list[Path]:
    return list(node.data_dir.glob("wal-*.log"))


def numbers_of(name: str) -> range:
    """The log files that an index covers."""
    _, first, last = name.removesuffix(".idx").split("-")
    return range(int(first), int(last) + 1)


def prepare(shell: Shell, client: Any, batches: int = 20, first: int = 0) -> None:
    """Store events, and wait until all full log files have their segment."""
    fill(client, batches, first=first)

    def all_there() -> bool:
        names = {path.stem for path in node_logs(shell.node)}
        covered = {number for name in segments_of(shell.node) for number in numbers_of(name)}
        return len(names) > 2 and {int(name.split("-")[1]) for name in names} <= covered

    eventually(all_there, "every full log file has its segment", 60)


def answers(client: Any) -> tuple[Any, Any]:
    """What was used, and the events as they lie in the segments."""
    usage = client.usage("acme", "calls", start=0, end=2**62)
    page = client.events("acme", limit=1_000)
    return usage.count, [event.id for event, _ in zip(page, range(5_000), strict=False)]


def test_an_operator_merges_segments(tmp_path: Path) -> None:
    with Node(environment=SMALL_FILES | QUIET) as node, node.client() as client:
        shell = Shell(node)
        client.put_metric("calls", "sum")
        prepare(shell, client)
        before, parts = answers(client), segments_of(node)
        waiting = shell.json("compact", "--no-wait")["job"]
        assert waiting["kind"] == "compact"
        shell.json("jobs", "wait", waiting["id"])
        (job,) = shell.json("compact", "--all", "--aggressive")["jobs"]
        assert job["state"] == "done"
        status = shell.json("compact", "status")
        assert (status["segments"], status["pending"]) == (1, 0)
        assert status["superseded"] >= len(parts)
        assert segments_of(node) > parts
        assert answers(client) == before
        assert "merged, kept" in shell.run("-o", "table", "compact", "status")
        node.restart()
        with node.client() as again:
            assert answers(again) == before


def test_waiting_ends_and_the_job_goes_on_until_it_is_cancelled() -> None:
    slow = {"METERD__COMPACTION__IO_LIMIT": "64KiB"}
    with Node(environment=SMALL_FILES | QUIET | slow) as node, node.client() as client:
        shell = Shell(node)
        client.put_metric("calls", "sum")
        prepare(shell, client)
        parts = segments_of(node)
        shell.run("compact", "--compact-timeout", "0.5", exit_code=8)
        errors = shell.errors
        (job,) = shell.json("jobs", "list", "--state", "running")["jobs"]
        assert f"jobs wait {job['id']}" in errors
        assert shell.json("compact", "status")["job"]["id"] == job["id"]
        shell.json("jobs", "cancel", job["id"])
        shell.run("jobs", "wait", job["id"], exit_code=1)
        assert segments_of(node) == parts
        assert not list(node.data_dir.glob("seg-*.tmp"))


PHASES = (".seg.tmp", ".seg", ".props", ".idx")


def test_a_node_killed_while_it_merges_has_the_parts_or_the_whole() -> None:
    """Killed as soon as each of the whole's files is seen, slowly enough to be seen."""
    slow = {"METERD__COMPACTION__IO_LIMIT": "1MiB"}
    node = Node(environment=SMALL_FILES | QUIET | slow)
    try:
        node.start()
        with node.client() as client:
            client.put_metric("calls", "sum")
        for round_, phase in enumerate(PHASES):
            with node.client() as client:
                prepare(Shell(node), client, 20, 20 * round_)
                before, parts = answers(client), segments_of(node)
            Shell(node).json("compact", "--no-wait", "--aggressive")

            def is_seen(phase: str = phase, parts: set[str] = parts) -> bool:
                seen = {path.stem for path in node.data_dir.glob(f"seg-*{phase}")}
                known = {name.removesuffix(".idx") for name in parts}
                return any(name.removesuffix(".seg") not in known for name in seen)

            eventually(is_seen, f"the whole has its {phase}")
            node.kill9()
            node.start()
            assert not list(node.data_dir.glob("seg-*.tmp"))
            assert segments_of(node) >= parts
            with node.client() as client:
                assert answers(client) == before
        assert Shell(node).json("compact", "--aggressive")["job"]["state"] == "done"
        assert Shell(node).json("compact", "status")["segments"] == 1
        with node.client() as client:
            assert answers(client) == before
    finally:
        node.remove()
