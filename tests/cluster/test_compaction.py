"""Compaction of a real node: asked for, cancelled, waited for in vain, and killed in between."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lz4.block
import pytest

from meterd.protocol.segment_format import BLOCK_LZ4, parse_index, parse_name
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


def text_of(path: Path) -> bytes:
    """What the file of a segment says, what is packed in it included."""
    raw, parsed = path.read_bytes(), parse_name(path.name)
    if parsed is None or parsed[1] == ".idx":
        return raw
    index = parse_index(path.with_suffix(".idx").read_bytes())
    places = {
        ".seg": ("blocks", "id_offset", "id_size", "id_raw_size"),
        ".props": ("set_blocks", "offset", "size", "raw_size"),
    }
    rows, *columns = places[parsed[1]]
    for block in getattr(index, rows):
        at, size, whole = (int(block[column]) for column in columns)
        if block["flags"] & BLOCK_LZ4:
            raw += lz4.block.decompress(raw[at : at + size], uncompressed_size=whole)
    return raw


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


def test_an_erased_account_leaves_the_segments_with_the_next_compaction(
    tmp_path: Path,
) -> None:
    """Texts of it are in no file of a segment any more; its ids stay used, all else stays."""
    secret, now = b"secret-account", time.time_ns()
    prompt = {
        "METERD__STORAGE__COPY_GRACE": "0s",
        "METERD__RETENTION__SWEEP_INTERVAL": "1s",
    }
    names = {"account": [secret.decode(), "acme"], "metric": "calls", "value": [1, 1]}
    with Node(environment=SMALL_FILES | QUIET | prompt) as node, node.client() as client:
        shell = Shell(node)
        client.put_metric("calls", "sum")
        for number in range(3):
            stored = client.ingest_columns(
                **names,
                timestamp=[now + number] * 2,
                id=[f"{number}-of-{secret.decode()}", f"{number}-of-acme"],
                properties={"note": [f"note of {secret.decode()}", "note"]},
            )
            assert stored.stored == 2
            fill(client, 7, first=7 * number)
        prepare(shell, client, 7, 21)
        shell.json("compact", "--aggressive")
        before = answers(client)

        def holders() -> list[str]:
            segments = node.data_dir.glob("seg-*")
            try:
                return sorted(path.name for path in segments if secret in text_of(path))
            except FileNotFoundError:
                return ["one that was deleted meanwhile"]

        assert holders()
        shell.json("account", "erase", secret.decode(), "--yes")
        (job,) = shell.json("compact", "--all")["jobs"]
        assert job["result"]["events_left_out"] == 3
        for path in node.data_dir.glob("seg-*.idx"):  # as if it had been there for long
            os.utime(path, (1, 1))

        eventually(lambda: not holders(), "no segment holds the account", 60)
        assert answers(client) == before
        again = client.ingest_columns(
            **names,
            timestamp=[now] * 2,
            id=[f"0-of-{secret.decode()}", "0-of-acme"],
        )
        assert again.stored == 0
        node.kill9()
        node.start()
        with node.client() as client_again:
            assert answers(client_again) == before
        assert not holders()
        assert shell.json("compact", "--all")["jobs"][0]["result"]["merges"] == 0
        shell.json("backup", "create", "--to", str(tmp_path))
        shell.json("backup", "verify", "--from", str(tmp_path), "--level", "replay")
        assert node.stop() == 0
        shell.run("fsck", "--data-dir", node.data_dir, "--level", "full")
