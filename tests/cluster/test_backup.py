"""Backups of a real node: made under load, damaged in every way, restored, killed in between."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from meterd.client import Client, Event
from meterd.protocol import backup_manifest
from tests.support.meterctl import call
from tests.support.node import ROOT, Node
from tests.support.s3_server import BUCKET, S3Server
from tests.support.steady_load import SteadyLoad, check_prefix, expected_totals, put_metrics
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SETTINGS = {"METERD__WAL__SEGMENT_SIZE": "4MiB", "METERD__STORAGE__CHECKPOINT_EVENTS": "2000"}


def program(*args):
    return [sys.executable, str(ROOT / "bin" / "meterctl"), "-o", "json", *map(str, args)]


class Tool:
    """Runs meterctl in this process."""

    def run(self, *args, exit_code=0):
        code, out, self.errors = call("-o", "json", *args)
        assert code == exit_code, (code, out, self.errors)
        return json.loads(out) if out else None

    def create(self, node, to, backup_type="full", **kwargs):
        where = ("--to", to, "--type", backup_type)
        return self.run("-n", node.address, "backup", "create", *where, **kwargs)


@pytest.fixture
def tool():
    return Tool()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two backups made under load: (directory, how many events were acknowledged before each)."""
    store = tmp_path_factory.mktemp("backups")
    acknowledged = []
    with Node(environment=SETTINGS) as node:
        with Client([node.address]) as client:
            put_metrics(client)
        with SteadyLoad(node.address) as load:
            for backup_type in ("full", "incr"):
                enough = load.acknowledged + 10_000
                eventually(lambda: load.acknowledged > enough, "events are stored")  # noqa: B023
                acknowledged.append(load.acknowledged)
                args = ("-n", node.address, "backup", "create", "--to", store)
                done = subprocess.run(
                    program(*args, "--type", backup_type), capture_output=True, check=False
                )
                assert done.returncode == 0, done.stderr
                result = json.loads(done.stdout)
                assert result["type"] == backup_type and result["events"] >= acknowledged[-1]
    return store, acknowledged


@pytest.fixture
def shelf(made, tmp_path):
    """A copy of the two that may be damaged: (directory, the full one, the incremental one)."""
    store = tmp_path / "backups"
    shutil.copytree(made[0], store)
    full, incremental = sorted(store.iterdir(), key=lambda path: path.name.endswith("incr"))
    return store, full, incremental


def manifest_of(backup):
    return backup_manifest.decode((backup / "manifest.json").read_bytes())


def rewrite(backup, **fields):
    """Write another manifest that is in itself good."""
    from dataclasses import replace

    changed = replace(manifest_of(backup), **fields)
    (backup / "manifest.json").write_bytes(backup_manifest.encode(changed))


def files_now(folder, pattern):
    """How many files match, where a program may clear or rename folders meanwhile."""
    try:
        return len(list(folder.glob(pattern)))
    except FileNotFoundError:
        return 0


def test_both_are_whole_and_give_back_what_was_acknowledged(made, tool, tmp_path):
    store, acknowledged = made
    listed = tool.run("backup", "list", "--from", store)["backups"]
    assert [(row["type"], row["state"]) for row in listed] == [("incr", "whole"), ("full", "whole")]
    assert listed[0]["parent"] == listed[1]["name"] and listed[0]["written"] < listed[0]["size"]
    for level in ("manifest", "checksum", "replay"):
        verified = tool.run("backup", "verify", "--from", store, "--level", level)
        assert [row["good"] for row in verified["backups"]] == [True, True]
    for row, count in zip(listed, reversed(acknowledged), strict=True):
        data_dir = tmp_path / row["type"]
        where = ("--from", store, "--backup", row["name"], "--data-dir", data_dir)
        assert tool.run("restore", "node", *where, "--yes")["done"]
        with Node(data_dir=data_dir) as node, Client([node.address], timeout=30) as client:
            held = check_prefix(client, count)
            assert held == row["events"]
            # Identities came back too, the oldest and the newest.
            with SteadyLoad(node.address) as load:
                eventually(lambda: load.acknowledged > held + 1_000, "events are taken")  # noqa: B023
            assert check_prefix(client, load.acknowledged) == load.acknowledged


def test_control_totals_are_those_of_the_events(made):
    store, _ = made
    for backup in store.iterdir():
        manifest = manifest_of(backup)
        found = {}
        for (_, number), (count, total) in manifest.totals.items():
            events, value = found.get(manifest.metrics[number].code, (0, 0))
            found[manifest.metrics[number].code] = (events + count, value + total)
        expected = {}
        for (_, metric), (count, total) in expected_totals(manifest.events).items():
            events, value = expected.get(metric, (0, 0))
            expected[metric] = (events + count, value + total)
        assert found == expected


def test_a_flipped_bit_anywhere_is_found_and_its_file_named(shelf, tool):
    store, *_ = shelf
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        raw = bytearray(path.read_bytes())
        for at in {0, len(raw) // 2, len(raw) - 1}:
            raw[at] ^= 16
            path.write_bytes(raw)
            found = tool.run("backup", "verify", "--from", store, exit_code=9)
            raw[at] ^= 16
            files = {one["file"] for row in found["backups"] for one in row["findings"]}
            assert str(path.relative_to(store)) in files, (path, at)
        path.write_bytes(raw)
    tool.run("backup", "verify", "--from", store)


def verify_finds(tool, store, path, level="checksum"):
    found = tool.run("backup", "verify", "--from", store, "--level", level, exit_code=9)
    files = {one["file"] for row in found["backups"] for one in row["findings"]}
    assert str(path.relative_to(store)) in files, files
    return [one["problem"] for row in found["backups"] for one in row["findings"]]


def test_a_dropped_file_is_found(shelf, tool):
    store, full, _ = shelf
    path = sorted((full / "wal").iterdir())[0]
    path.unlink()
    for level in ("manifest", "checksum", "replay"):
        assert "it is missing" in verify_finds(tool, store, path, level)


def test_a_cut_log_is_found(shelf, tool):
    store, full, _ = shelf
    path = full / "wal" / "wal.log"
    os.truncate(path, path.stat().st_size - 512)
    verify_finds(tool, store, path, "manifest")


def test_a_dropped_base_is_found_and_nothing_is_pruned_or_restored(shelf, tool, tmp_path):
    store, full, incremental = shelf
    shutil.rmtree(full)
    verify_finds(tool, store, full / "manifest.json", "manifest")
    listed = tool.run("backup", "list", "--from", store)["backups"]
    assert [row["state"] for row in listed] == ["chain broken"]
    where = ("--from", store, "--data-dir", tmp_path / "data", "--yes")
    tool.run("restore", "node", *where, exit_code=9)
    assert incremental.name in tool.errors or full.name in tool.errors
    assert not (tmp_path / "data").exists()


def test_swapped_manifests_are_found(shelf, tool):
    store, full, incremental = shelf
    one, other = (path / "manifest.json" for path in (full, incremental))
    raw = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(raw)
    verify_finds(tool, store, one, "manifest")
    verify_finds(tool, store, other, "manifest")


def test_a_missing_manifest_is_found(shelf, tool):
    store, full, _ = shelf
    (full / "manifest.json").unlink()
    verify_finds(tool, store, full / "manifest.json", "manifest")
    tool.run("backup", "list", "--from", store, exit_code=9)
    tool.run("backup", "prune", "--from", store, "--min-keep", 1, "--yes", exit_code=6)


def test_replay_finds_a_wrong_total_that_looks_consistent(shelf, tool, tmp_path):
    store, _, incremental = shelf
    totals = dict(manifest_of(incremental).totals)
    place = max(totals)
    totals[place] = (totals[place][0], totals[place][1] + 1)
    rewrite(incremental, totals=totals)
    tool.run("backup", "verify", "--from", store, "--level", "checksum")
    problems = verify_finds(tool, store, incremental / "manifest.json", "replay")
    assert any(f"partition {place[0]}" in problem for problem in problems)
    where = ("--from", store, "--data-dir", tmp_path / "data", "--yes")
    tool.run("restore", "node", *where, exit_code=9)
    assert list(tmp_path.iterdir()) == [store]


def test_replay_finds_a_log_whose_end_was_cut_with_its_manifest(shelf, tool):
    import hashlib
    from dataclasses import replace

    store, full, _ = shelf
    path = full / "wal" / "wal.log"
    os.truncate(path, 4096)
    raw = path.read_bytes()
    files = tuple(
        replace(file, size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        if file.name == "wal.log"
        else file
        for file in manifest_of(full).files
    )
    rewrite(full, files=files)
    tool.run("backup", "verify", "--from", store, "--backup", full.name)
    verify_finds(tool, store, path, "replay")


def test_pruning_keeps_chains_and_asks_first(shelf, tool):
    store, full, incremental = shelf
    unfinished = store / "meterd-00000000-n0-20200101T000000.000Z-full.partial"
    (unfinished / "wal").mkdir(parents=True)
    everything = (
        "backup",
        "prune",
        "--from",
        store,
        "--keep-daily",
        0,
        "--keep-weekly",
        0,
        "--min-keep",
        1,
    )
    rows = tool.run(*everything, "--dry-run")["backups"]
    assert {row["name"]: row["action"] for row in rows} == {
        incremental.name: "kept",
        full.name: "kept",
        unfinished.name: "would be deleted",
    }
    tool.run(*everything, exit_code=6)
    assert unfinished.exists()
    tool.run(*everything, "--yes")
    assert not unfinished.exists() and full.exists()
    shutil.rmtree(incremental)
    newer = store / full.name.replace("-full", "x-full")
    shutil.copytree(full, newer)
    rewrite(
        newer,
        name=newer.name,
        finished=time.time_ns(),
        files=tuple(
            type(file)(file.name, file.folder, file.size, file.sha256, newer.name)
            for file in manifest_of(full).files
        ),
    )
    tool.run(*everything, "--yes")
    assert sorted(path.name for path in store.iterdir()) == [newer.name]


def test_restore_says_what_it_will_do_and_moves_the_old_directory_aside(shelf, tool, tmp_path):
    store, _, incremental = shelf
    with Node(environment=SETTINGS, data_dir=tmp_path / "other") as other:
        where = ("--from", store, "--data-dir", other.data_dir)
        tool.run("restore", "node", *where, "--plan", exit_code=10)
        other.stop()
        tool.run("restore", "node", *where, "--yes", exit_code=6)
        assert "belongs to node" in tool.errors
    data_dir = tmp_path / "data"
    where = ("--from", store, "--data-dir", data_dir)
    plan = tool.run("restore", "cluster", *where, "--plan")
    assert plan["plan"]["backup"] == incremental.name and not plan["done"]
    assert not data_dir.exists()
    tool.run("restore", "node", *where, exit_code=6)
    assert "--yes" in tool.errors
    tool.run("restore", "node", *where, "--yes", "--level", "checksum")
    (data_dir / "mine").write_text("kept")
    again = tool.run("restore", "node", *where, "--yes")
    aside = again["plan"]["moved_aside_to"]
    assert os.path.isfile(os.path.join(aside, "mine"))
    assert not (data_dir / "mine").exists() and (data_dir / "restored.json").exists()
    assert not list(tmp_path.glob("data.restoring-*"))


def test_a_restore_that_is_killed_leaves_the_old_directory(shelf, tool, tmp_path):
    store, *_ = shelf
    data_dir = tmp_path / "data"
    where = ("restore", "node", "--from", store, "--data-dir", data_dir, "--yes")
    tool.run(*where, "--level", "checksum")
    (data_dir / "lock").touch()
    before = {path.name: path.stat().st_ino for path in data_dir.iterdir()}
    for files in (1, 4, 9):
        for left in tmp_path.glob("data.restoring-*"):  # only files of this attempt count
            shutil.rmtree(left)
        with subprocess.Popen(program(*where), stdout=subprocess.DEVNULL) as process:
            eventually(
                lambda: files_now(tmp_path, "data.restoring-*/*") >= files,  # noqa: B023
                "files are fetched",
            )
            process.kill()
        assert before == {path.name: path.stat().st_ino for path in data_dir.iterdir()}
    tool.run(*where)
    assert not list(tmp_path.glob("data.restoring-*"))
    assert len(list(tmp_path.glob("data.before-restore-*"))) == 1


def test_a_drill_tells_how_long_it_takes(shelf, tool, tmp_path):
    store, _, incremental = shelf
    report = tmp_path / "report.json"
    found = tool.run("drill", "--from", store, "--scratch", tmp_path, "--report", report)
    assert found["backup"] == incremental.name and found["totals_equal"]
    assert found["rto_seconds"] > 0 and found["rpo_seconds"] > 0
    assert json.loads(report.read_text()) == found
    tool.run("drill", "--from", store, "--scratch", tmp_path, "--max-rpo", "0s", exit_code=1)
    manifest = manifest_of(incremental)
    rewrite(incremental, totals={**manifest.totals, (9, 1): (1, 1)})
    tool.run("drill", "--from", store, "--scratch", tmp_path, exit_code=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "report.json"]


def test_a_node_is_told_how_backups_were_proved(shelf, tool, tmp_path):
    store, full, _ = shelf
    with Node() as node, node.client() as client:
        nodes = ("-n", node.address)

        def shown():
            page = client.metrics("billing_backup") + client.metrics("billing_drill")
            return {
                line.split()[0]: float(line.split()[1])
                for line in page.splitlines()
                if line and not line.startswith("#")
            }

        tool.run(*nodes, "backup", "verify", "--from", store, "--tell")
        drill = tool.run(*nodes, "drill", "--from", store, "--scratch", tmp_path, "--tell")
        name = 'billing_backup_verified_timestamp_seconds{level="checksum"}'
        eventually(lambda: name in shown(), "it is shown")
        eventually(lambda: "billing_drill_rto_seconds" in shown(), "the drill, too")
        found = shown()
        assert (found["billing_backups_present"], found["billing_backups_broken"]) == (2, 0)
        assert found["billing_drill_rto_seconds"] == pytest.approx(drill["rto_seconds"], abs=0.002)
        (full / "wal" / "wal.log").unlink()
        tool.run(*nodes, "backup", "verify", "--from", store, "--tell", exit_code=9)
        eventually(lambda: shown()["billing_backups_broken"] == 1, "one is broken")
        assert shown()[name] == found[name]
    tool.run(*nodes, "backup", "verify", "--from", store, "--tell", exit_code=9)
    assert "was not told" in tool.errors


def partials(store):
    return [path for path in store.iterdir() if path.name.endswith(".partial")]


def test_a_kill_during_a_backup_leaves_only_what_the_next_one_clears(tool, tmp_path):
    slow = {**SETTINGS, "METERD__BACKUP__IO_LIMIT": "128KiB"}
    store = tmp_path / "backups"
    with Node(environment=slow) as node:
        with Client([node.address]) as client:
            put_metrics(client)
        with SteadyLoad(node.address) as load:
            eventually(lambda: load.acknowledged > 20_000, "events are stored")
        for kill in (node.kill9, lambda: node.kill_actor("retention_sweeper")):
            command = program("-n", node.address, "backup", "create", "--to", store)
            with subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                eventually(lambda: files_now(store, "*.partial/*/*"), "it has begun")
                kill()
                process.kill()
            assert partials(store) == list(store.iterdir())
            assert not list(store.rglob("manifest.json"))
            if node.process.poll() is not None:
                node.start()
            # A request of the moment of the kill is lost; what starts a job is not sent again.
            tool.run("-n", node.address, "jobs", "list")
            (row,) = tool.run("backup", "list", "--from", store)["backups"]
            assert row["state"] == "unfinished"
        job = tool.run(
            "-n", node.address, "--timeout", 4, "backup", "create", "--to", store, exit_code=8
        )
        assert job is None and "it goes on" in tool.errors
        assert len(partials(store)) == 1
        node._environment["METERD__BACKUP__IO_LIMIT"] = "1GiB"
        assert node.stop() == 0  # which ends the job
        node.start()
        made = tool.create(node, store)
        assert [path.name for path in store.iterdir()] == [made["name"]]
        assert made["events"] >= 20_000


def test_refusals(tool, tmp_path):
    with Node() as node:
        inside = node.data_dir / "backups"
        tool.create(node, inside, exit_code=2)
        assert "inside the data directory" in tool.errors and not inside.exists()
        tool.create(node, "ftp://x/y", exit_code=2)
        (tmp_path / "file").write_text("")
        tool.create(node, tmp_path / "file" / "x", exit_code=2)
        tool.run("backup", "verify", "--from", tmp_path, exit_code=5)
        tool.run("backup", "list", "--from", tmp_path / "none", exit_code=3)
        where = ("--data-dir", tmp_path / "data")
        tool.run("restore", "node", "--from", tmp_path, *where, exit_code=5)
        held = tool.run("-n", node.address, "backup", "hold", "--for", "1h")
        assert held["expires"] > time.time_ns()
        assert tool.run("-n", node.address, "backup", "release")["released"]
        tool.run("-n", node.address, "backup", "release", exit_code=5)
        (node.data_dir / "not mine").write_text("left out")
        # An incremental backup with nothing to build on is a full one.
        made = tool.create(node, tmp_path / "new", "incr")
        assert (made["type"], made["events"]) == ("full", 0)
        tool.run("backup", "list", "--from", tmp_path / "new", "--max-age", "1h")
        tool.run("backup", "list", "--from", tmp_path / "new", "--max-age", "0s", exit_code=1)
        for shown in (
            'billing_backup_runs_total{result="ok"} 1',
            'billing_backup_last_success_timestamp_seconds{type="full"}',
        ):
            eventually(lambda: shown in node.get("/metrics")[1], shown)  # noqa: B023


def test_nothing_expires_after_a_restore_until_the_grace_is_over(tool, tmp_path):
    old = time.time_ns() - 50 * 86_400 * 10**9
    event = Event("a", "calls", 5, old, "1")
    store, data_dir = tmp_path / "backups", tmp_path / "data"
    with Node() as node:
        with Client([node.address]) as client:
            put_metrics(client)
            assert client.ingest([event]).stored == 1
        tool.create(node, store)
    tool.run("restore", "node", "--from", store, "--data-dir", data_dir, "--yes")
    with Node("--retention-days", "10", data_dir=data_dir) as node:
        assert "nothing expires until" in node.log()
        with Client([node.address], timeout=30) as client:
            assert client.usage("a", "calls", start=old - 1, end=old + 1).value == 5
            assert client.ingest([event]).duplicate == 1
        node._environment["METERD__RETENTION__GRACE_AFTER_RESTORE"] = "0s"
        node.restart()
        with Client([node.address], timeout=30) as client:
            eventually(lambda: client.ingest([event]).rejected == 1, "it has expired")


def test_the_archive_brings_back_what_came_after_the_backup(tool, tmp_path):
    """As docs/BACKUP.md says."""
    store, archive = tmp_path / "backups", tmp_path / "archive"
    archive.mkdir()
    with Node(environment=SETTINGS | {"METERD__ARCHIVE__TARGET": str(archive)}) as node:
        with Client([node.address]) as client:
            put_metrics(client)
        with SteadyLoad(node.address) as load:
            eventually(lambda: load.acknowledged > 5_000, "events are stored")
            backed_up = tool.create(node, store)["events"]
            eventually(lambda: files_now(archive, "*/*/wal-*.log") > 2, "files get full", 60)
        tool.run("-n", node.address, "wal", "archive")
        held = load.acknowledged
    data_dir = tmp_path / "data"
    assert tool.run("restore", "node", "--from", store, "--data-dir", data_dir, "--yes")["done"]
    (backup,) = store.iterdir()
    archived = sorted(archive.rglob("wal-*.log"))[manifest_of(backup).cut.file_number - 1 :]
    for path in archived:
        shutil.copy(path, data_dir)
    (data_dir / archived[-1].name).rename(data_dir / "wal.log")
    with Node(data_dir=data_dir) as node, Client([node.address], timeout=30) as client:
        assert backed_up < check_prefix(client, 0) <= held


def test_a_bucket_holds_backups_as_well(tool, tmp_path, monkeypatch):
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/node-0"
        with Node(environment={**SETTINGS, **server.environment}) as node:
            with Client([node.address]) as client:
                put_metrics(client)
            with SteadyLoad(node.address) as load:
                eventually(lambda: load.acknowledged > 10_000, "events are stored")
                full = tool.create(node, url)
                eventually(lambda: load.acknowledged > 20_000, "events are stored")
                incremental = tool.create(node, url, "incr")
        assert incremental["parent"] == full["name"]
        found = tool.run("backup", "verify", "--from", url, "--level", "replay")
        assert [row["good"] for row in found["backups"]] == [True, True]
        data_dir = tmp_path / "data"
        tool.run("restore", "node", "--from", url, "--data-dir", data_dir, "--yes")
        with Node(data_dir=data_dir) as node, Client([node.address], timeout=30) as client:
            assert check_prefix(client, 20_000) == incremental["events"]
        bucket = server.client()
        key = f"node-0/{full['name']}/wal/wal.log"
        body = bytearray(bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        body[-1] ^= 1
        bucket.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))
        found = tool.run("backup", "verify", "--from", url, exit_code=9)
        assert found["backups"][0]["findings"][0]["file"] == f"{full['name']}/wal/wal.log"
        bucket.delete_object(Bucket=BUCKET, Key=f"node-0/{full['name']}/manifest.json")
        states = [row["state"] for row in tool.run("backup", "list", "--from", url)["backups"]]
        assert sorted(states) == ["chain broken", "unfinished"]
