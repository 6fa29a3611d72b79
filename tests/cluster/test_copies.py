"""A copy of the data directory, made while the node writes, is a backup: it starts and is right."""

import os
import shutil
import subprocess
import sys

import pytest

from meterd.client import Client
from meterd.protocol.log_format import number_of, number_of_open
from tests.support.live_copy import copy_names, cp_like, rsync_like
from tests.support.node import ROOT, Node
from tests.support.steady_load import SteadyLoad, check_prefix, put_metrics
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow]

# Log files and checkpoints that change several times while a copy is made.
SETTINGS = {"METERD__WAL__SEGMENT_SIZE": "4MiB", "METERD__STORAGE__CHECKPOINT_EVENTS": "5000"}
REST = 0.02


def full_files(node):
    return len(list(node.data_dir.glob("wal-*.log")))


def copied(node, load, directory, way):
    """Copy a directory; return how many events were acknowledged before."""
    acknowledged = load.acknowledged
    way(node.data_dir, directory, REST)
    return acknowledged


def starts_and_holds(directory, acknowledged):
    with Node(data_dir=directory, environment=SETTINGS) as node:
        assert "this directory is a copy" in node.log()
        with Client([node.address], timeout=60) as client:
            held = check_prefix(client, acknowledged)
            # What was lost behind the copy may be sent again; what was not is known.
            with SteadyLoad(node.address, first=max(0, held - 1_000)) as load:
                eventually(lambda: load.acknowledged > held + 1_000, "events are taken")
            check_prefix(client, load.acknowledged)
        # From now on it is a directory as any other.
        node.restart()
        assert node.log().count("this directory is a copy") == 1
        with Client([node.address], timeout=60) as client:
            check_prefix(client, load.acknowledged)


def test_five_copies_under_load_start_and_hold_what_was_acknowledged_before(tmp_path):
    ways = [rsync_like, cp_like, rsync_like, cp_like, rsync_like]
    copies = []
    with Node(environment=SETTINGS) as node:
        with Client([node.address]) as client:
            put_metrics(client)
        with SteadyLoad(node.address) as load:
            for number, way in enumerate(ways):
                eventually(lambda: full_files(node) > number, "a log file is full", 120)  # noqa: B023
                directory = tmp_path / str(number)
                copies.append((directory, copied(node, load, directory, way)))
    for directory, acknowledged in copies:
        starts_and_holds(directory, acknowledged)


@pytest.mark.skipif(shutil.which("cp") is None, reason="no cp here")
def test_a_copy_by_cp_keeps_hard_links_and_starts(tmp_path):
    with Node(environment=SETTINGS) as node:
        with Client([node.address]) as client:
            put_metrics(client)
        with SteadyLoad(node.address) as load:
            eventually(lambda: load.acknowledged > 30_000, "events are stored", 60)
            acknowledged = load.acknowledged
            # Whatever vanishes meanwhile makes cp end with 1.
            subprocess.run(["cp", "-a", node.data_dir, tmp_path / "copy"], check=False)
    starts_and_holds(tmp_path / "copy", acknowledged)


def test_every_full_log_file_and_the_active_one_have_a_second_name(tmp_path):
    with Node(environment=SETTINGS) as node:
        with Client([node.address]) as client:
            put_metrics(client)
        with SteadyLoad(node.address) as load:
            eventually(lambda: full_files(node) > 1, "log files are full", 120)
        assert load.acknowledged
        names = os.listdir(node.data_dir)
        full = {number_of(name) for name in names} - {None}
        assert {number_of_open(name) for name in names} - {None} == full | {max(full) + 1}


def test_a_hold_gives_any_copier_a_checkpoint_that_fits(tmp_path):
    with Node(environment=SETTINGS) as node:
        with Client([node.address]) as client:
            put_metrics(client)
        with SteadyLoad(node.address) as load:
            eventually(lambda: load.acknowledged > 30_000, "events are stored", 60)
            hold = ["-n", node.address, "backup", "hold", "--for", "1h"]
            subprocess.run([sys.executable, str(ROOT / "bin" / "meterctl"), *hold], check=True)
            acknowledged = load.acknowledged
            # The worst of all orders: checkpoints that are newer than the log.
            names = sorted(os.listdir(node.data_dir), reverse=True)
            copy_names(node.data_dir, tmp_path / "copy", names, 0.05)
    # Nor can the log be replayed from its beginning.
    for path in (tmp_path / "copy").glob("wal-00000000000000000001.*"):
        path.unlink()
    with Node(data_dir=tmp_path / "copy", environment=SETTINGS) as node:
        assert "kept for copies, is used" in node.log()
        with Client([node.address], timeout=60) as client:
            assert client.status()["totals"]["events"] >= acknowledged
