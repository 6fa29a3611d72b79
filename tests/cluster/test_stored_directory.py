"""A real node opens the directories that were stored with earlier versions, and this one's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meterd.client import Client
from meterd.protocol import checkpoint_format
from tests.support import stored_directory
from tests.support.node import ROOT, Node
from tests.support.stored_directory import ENVIRONMENT, answers, conflict_of, event_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FOLDERS = sorted((ROOT / "tests" / "data").glob("directory-v*"))
OLD = 300


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, dict]]:
    expected = stored_directory.open_archive(request.param, tmp_path)
    yield tmp_path / "data", expected
    shutil.rmtree(tmp_path / "data")


def fsck(data_dir: Path, *args: str, exit_code: int = 0) -> dict:
    command = [sys.executable, str(ROOT / "bin" / "meterctl"), "fsck", "--data-dir", str(data_dir)]
    done = subprocess.run([*command, *args], capture_output=True, timeout=120, check=False)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else {}


def check_identities(client: Client, count: int) -> None:
    """Old events are known, whatever of them, and new ones are taken."""
    old = range(0, count, max(1, count // OLD))
    again = client.ingest([event_of(number) for number in old])
    assert (again.duplicate, again.received) == (len(old), len(old))
    conflicts = client.ingest([conflict_of(number) for number in old])
    assert conflicts.conflict == len(old)
    new = client.ingest([event_of(count + number) for number in range(OLD)])
    assert new.stored == OLD
    assert client.ingest([event_of(count + number) for number in range(OLD)]).duplicate == OLD


def test_a_stored_directory_opens_and_answers_as_ever(stored):
    data_dir, expected = stored
    assert fsck(data_dir, "--level", "full")["result"] == "clean"
    node = Node(data_dir=data_dir, environment=ENVIRONMENT)
    try:
        node.start()
        with node.client(timeout=60) as client:
            assert answers(client) == expected
            assert [event.account for event in client.rejected()] == ["acme/1"] * 4
            fsck(data_dir, exit_code=6)
            check_identities(client, expected["events"])
        node.kill9()
        assert fsck(data_dir, "--level", "full")["result"] in ("clean", "note", "warning")
        node.start()
        with node.client(timeout=60) as client:
            assert answers(client)["events"] == expected["events"] + OLD
        assert node.stop() == 0
        assert fsck(data_dir, "--level", "full")["result"] in ("clean", "note")
    finally:
        node.remove()


def test_a_node_goes_on_with_rebuilt_identities(stored):
    """Without them it refuses to start, and names what is lost; with them every event is known."""
    data_dir, expected = stored
    state = checkpoint_format.read_state((data_dir / "checkpoint.bin").read_bytes())
    lost = [file[0] for file in state["runs"]]
    for name in lost:
        (data_dir / name).unlink()
    node = Node(data_dir=data_dir, environment=ENVIRONMENT)
    try:
        node.start(wait=False)
        assert node.process is not None
        assert node.process.wait(120) == 65
        assert any(name in node.log() for name in lost)
        assert "meterctl fsck --rebuild-identities" in node.log()
        done = fsck(data_dir, "--rebuild-identities", "--yes")
        assert done["identities"] == done["named_before"]
        node.start()
        with node.client(timeout=60) as client:
            assert answers(client) == expected
            check_identities(client, expected["events"])
    finally:
        node.remove()
