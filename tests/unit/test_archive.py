"""The archive: each full log file is copied once and proved; every way to fail is counted."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from meterd.actors.frames.bundle import bundle
from meterd.actors.housekeeping import archive, archive_state, object_store
from meterd.actors.housekeeping.archive_copy import RESULTS, STORED, ArchiveFailed, CommandCopier
from meterd.actors.housekeeping.archive_state import ArchiveState, Gap
from meterd.actors.keeping.registry_file import REGISTRY_FILE
from meterd.actors.measuring import catalog
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.actors.starting import restored
from meterd.actors.starting.restored import Restored
from meterd.core.state.registry import Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import DiskFull, Exists, StoreFailed
from meterd.protocol.log_format import full_name, number_of
from tests.support.log_builder import CLUSTER_ID, LoggedEvent
from tests.support.log_directory import LogDirectory
from tests.support.periods import DAY
from tests.support.recording import answers, recorded, request
from tests.support.s3_server import BUCKET, S3Server
from tests.support.waiting import eventually

PREFIX = f"{CLUSTER_ID.hex()}/node-1"
OLD = time.time_ns() - 200 * DAY
PYTHON = sys.executable


@pytest.fixture
def log(tmp_path: Path) -> LogDirectory:
    (tmp_path / "data").mkdir()
    state = {"kind": "registry", "registry": Registry().to_bytes()}
    encoded = b"".join(checkpoint_format.encode(state, {}))
    (tmp_path / "data" / REGISTRY_FILE).write_bytes(encoded)
    made = LogDirectory(tmp_path / "data")
    for _ in range(3):
        seal(made)
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def seal(log: LogDirectory) -> None:
    log.write([LoggedEvent("a", f"{log.builder.file_number}", 1, 5, OLD)])
    log.seal(segmented=True)


class Sweeper:
    """A retention sweeper with an archive, and what can be seen of it."""

    def __init__(self, log: LogDirectory, incarnation: int = 1, **options: Any) -> None:
        options = {"check_interval": "100ms", "timeout": "10s"} | options
        self.actor = recorded(RetentionSweeper, log.path, incarnation, archive=options)

    def ask(self, kind: str, **body: Any) -> tuple[str, Any]:
        self.actor.handle([b"requests", *bundle([b"rid", *request(kind, body)])])
        self.actor.flush()
        (found,) = answers(self.actor)
        return found

    def run(self) -> dict[str, Any]:
        """Archive what waits; return how the job ended."""
        status, answer = self.ask("wal_archive")
        assert status == "ok", answer
        number = answer["job"]["id"]

        def ended() -> dict[str, Any] | None:
            self.actor.tick(time.monotonic())
            job = self.ask("job_show", id=number)[1]["job"]
            return job if job["finished"] is not None else None

        job = eventually(ended, "the job ends")
        self.actor.tick(time.monotonic())
        assert job is not None
        return job

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("wal_status")[1]["archive"]
        return found

    @property
    def counted(self) -> dict[str, int]:
        counters, name = self.actor.telemetry._counters, "archive_segments_total"
        return {key.split('"')[1]: n for key, n in counters.items() if key.startswith(name)}

    def gauge(self, name: str) -> float:
        return self.actor.telemetry._gauges[name]

    def tell(self) -> None:
        """Say that the checkpoints need no file, and that every event has expired."""
        told = {"days": 90, "set": False, "horizon": time.time_ns(), "first_needed": 100}
        standing = {"horizon": told["horizon"], "totals_horizon": told["horizon"], "erasures": []}
        self.actor.handle([b"expiry", msgpack.packb(standing)])
        self.actor.handle([b"retention", msgpack.packb(told)])


@pytest.fixture
def start(log: LogDirectory) -> Iterator[Callable[..., Sweeper]]:
    made: list[Sweeper] = []

    def begin(**options: Any) -> Sweeper:
        made.append(Sweeper(log, **options))
        return made[-1]

    yield begin
    for one in made:
        one.actor.close()


def content(log: LogDirectory, number: int) -> bytes:
    return (log.path / full_name(number)).read_bytes()


def archived(target: Path) -> dict[str, bytes]:
    files = [path for path in target.rglob("*") if path.is_file()]
    return {str(path.relative_to(target)): path.read_bytes() for path in files}


def whole(log: LogDirectory) -> dict[str, bytes]:
    return {f"{PREFIX}/{full_name(n)}": content(log, n) for n in (1, 2, 3)}


def test_the_catalogue_knows_every_result() -> None:
    assert (*RESULTS, "gap") == catalog.ARCHIVED


@pytest.mark.parametrize("verify", ["content", "size"])
def test_every_full_file_is_copied_once(log, target, start, verify):
    sweeper = start(target=str(target), verify=verify)
    assert sweeper.status["queue_files"] == 3
    job = sweeper.run()
    assert (job["state"], job["result"]["files"]) == ("done", 3)
    assert archived(target) == whole(log)
    assert sweeper.counted == {"stored": 3}
    assert sweeper.status.items() >= {"through": 3, "queue_files": 0, "gaps": []}.items()
    seal(log)
    assert sweeper.run()["result"]["files"] == 1
    assert sweeper.counted == {"stored": 4}


def test_it_goes_on_by_itself_when_a_file_gets_full(log, target, start):
    sweeper = start(target=str(target))

    def done(count: int) -> bool:
        sweeper.actor.tick(time.monotonic())
        return len(list(target.rglob("wal-*.log"))) == count

    eventually(lambda: done(3), "all are archived")
    seal(log)
    eventually(lambda: done(4), "the new one is archived")
    assert archived(target) == whole(log) | {f"{PREFIX}/{full_name(4)}": content(log, 4)}


def test_what_is_archived_is_known_after_a_restart(log, target, start):
    start(target=str(target)).run()
    again = start(target=str(target))
    assert again.status["through"] == 3
    again.actor.tick(time.monotonic())
    assert again.actor.jobs.active("archive") is None


def test_what_is_archived_is_found_when_it_was_forgotten(log, target, start):
    start(target=str(target)).run()
    (log.path / archive_state.FILE_NAME).unlink()
    again = start(target=str(target))
    assert again.run()["result"]["files"] == 3
    assert again.counted == {"present": 3}


def test_what_is_found_is_made_durable_before_it_counts(log, target, start, monkeypatch):
    start(target=str(target)).run()
    (log.path / archive_state.FILE_NAME).unlink()

    def fail(_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(object_store, "sync_directory", fail)
    again = start(target=str(target))
    assert again.run()["state"] == "failed"
    assert again.status["through"] == 0


def test_a_damaged_state_begins_anew(log, target, start, caplog):
    start(target=str(target)).run()
    (log.path / archive_state.FILE_NAME).write_bytes(b"damaged")
    assert start(target=str(target)).run()["state"] == "done"
    assert "archiving begins anew" in caplog.text


def test_another_target_begins_anew(log, target, start, tmp_path):
    start(target=str(target)).run()
    (tmp_path / "other").mkdir()
    sweeper = start(target=str(tmp_path / "other"))
    assert sweeper.status["through"] == 0
    sweeper.run()
    assert archived(tmp_path / "other") == whole(log)


def test_a_restored_directory_archives_under_names_of_its_own(log, target, start):
    """It uses numbers of log files again that the life before the restore has used."""
    start(target=str(target)).run()
    expected = archived(target)
    for moment in (1_000, 2_000):
        restored.write(str(log.path), Restored("meterd-1", moment, 7, 1))
        sweeper = start(target=str(target))
        assert sweeper.status["through"] == 0
        assert sweeper.run()["result"]["files"] == 3
        own = {f"{PREFIX}/restored-{moment}/{full_name(n)}": content(log, n) for n in (1, 2, 3)}
        expected |= own
        assert archived(target) == expected
        assert sweeper.status.items() >= {"through": 3, "gaps": []}.items()
        assert start(target=str(target)).status["through"] == 3


def test_a_node_in_the_place_of_a_lost_one_archives_under_names_of_its_own(log, target, start):
    """Its log begins with file 1 again, and what the lost one has archived stays as it is."""
    lost = target / PREFIX / full_name(1)
    lost.parent.mkdir(parents=True)
    lost.write_bytes(b"what the lost one has archived")
    sweeper = start(incarnation=2, target=str(target))
    assert sweeper.run()["state"] == "done"
    own = {f"{PREFIX}/incarnation-2/{full_name(n)}": content(log, n) for n in (1, 2, 3)}
    assert archived(target) == own | {f"{PREFIX}/{full_name(1)}": lost.read_bytes()}
    assert start(incarnation=2, target=str(target)).status["through"] == 3


@pytest.mark.parametrize("verify", ["content", "size"])
def test_other_bytes_under_the_name_are_never_overwritten(log, target, start, verify):
    path = target / PREFIX / full_name(2)
    path.parent.mkdir(parents=True)
    wrong = bytes([content(log, 2)[0] ^ 1]) + content(log, 2)[1:]
    path.write_bytes(wrong)
    sweeper = start(target=str(target), verify=verify)
    job = sweeper.run()
    assert (job["state"], job["error"]["code"]) == ("failed", "archive_failed")
    assert "nothing is overwritten" in job["error"]["message"]
    assert path.read_bytes() == wrong
    assert sweeper.counted == {"stored": 1, "different": 1}
    status = sweeper.status
    assert (status["through"], status["queue_files"]) == (1, 2)
    assert status["last_failure"]["number"] == 2
    assert status["last_failure"]["result"] == "different"
    path.write_bytes(content(log, 2) + b"more")
    assert sweeper.run()["state"] == "failed"
    path.unlink()
    assert sweeper.run()["state"] == "done"
    assert archived(target) == whole(log)


def test_a_file_that_is_not_archived_is_not_deleted(log, target, start):
    target.rmdir()
    sweeper = start(target=str(target))
    assert sweeper.run()["state"] == "failed"
    sweeper.tell()
    held = sweeper.ask("retention_run")[1]
    assert (held["files"], held["held"]) == (0, {"archive": 3})
    target.mkdir()
    assert sweeper.run()["state"] == "done"
    assert sweeper.ask("retention_run")[1]["files"] == 3
    assert not (log.path / full_name(1)).exists()
    assert len(archived(target)) == 3


def test_failures_are_counted_and_tried_again_later_each_time(log, target, start):
    target.rmdir()
    sweeper = start(target=str(target))
    waits = []
    for _ in range(3):
        assert sweeper.run()["state"] == "failed"
        waits.append(sweeper.status["retry_seconds"])
    assert waits[0] <= 1 < waits[1] <= 2 < waits[2] <= 4
    assert sweeper.counted == {"failed": 3}
    assert sweeper.gauge("archive_last_failure_timestamp_seconds") > 0
    sweeper.actor.tick(time.monotonic())
    assert sweeper.actor.jobs.active("archive") is None  # not yet
    target.mkdir()
    assert sweeper.run()["state"] == "done"
    assert sweeper.status["retry_seconds"] == 0


def test_a_damaged_log_file_is_not_archived(log, target, start):
    path = log.path / full_name(2)
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    sweeper = start(target=str(target))
    assert sweeper.run()["state"] == "failed"
    assert sweeper.counted == {"stored": 1, "damaged": 1}
    assert list(archived(target)) == [f"{PREFIX}/{full_name(1)}"]


def test_a_store_that_forgets_is_found_out(log, target, start, monkeypatch):
    monkeypatch.setattr(
        "meterd.actors.housekeeping.object_store.DirectoryStore.put",
        lambda _, name, source: source.read(1),
    )
    sweeper = start(target=str(target))
    assert sweeper.run()["state"] == "failed"
    assert sweeper.counted == {"unverified": 1}
    assert sweeper.status["through"] == 0


def test_a_store_that_garbles_is_found_out(log, target, start, monkeypatch):
    from meterd.actors.housekeeping.object_store import DirectoryStore

    monkeypatch.setattr(DirectoryStore, "get", lambda _, name: iter([content(log, 2)]))
    sweeper = start(target=str(target))
    assert sweeper.run()["state"] == "failed"
    assert sweeper.counted == {"different": 1}


def test_a_cancelled_job_leaves_nothing_half_done(log, target, start, monkeypatch):
    from meterd.actors.housekeeping.object_store import DirectoryStore

    sweeper = start(target=str(target))
    put = DirectoryStore.put

    def cancelled(store, name, source):
        for job in sweeper.actor.jobs._jobs.values():
            job.task.cancelled.set()
        put(store, name, source)

    with monkeypatch.context() as patched:
        patched.setattr(DirectoryStore, "put", cancelled)
        assert sweeper.run()["state"] == "cancelled"
    assert archived(target) == {}
    assert sweeper.counted == {}
    assert sweeper.run()["state"] == "done"


def test_without_an_archive_there_is_nothing_to_run(log, start):
    sweeper = start()
    status, body = sweeper.ask("wal_archive")
    assert (status, body["code"]) == ("error", "not_found")
    assert sweeper.status["through"] is None
    sweeper.tell()
    assert sweeper.ask("retention_run")[1]["files"] == 3


def test_a_disk_too_full_for_the_state_is_said(log, target, start, monkeypatch):
    def full(*_):
        raise DiskFull("no space left")

    sweeper = start(target=str(target))
    with monkeypatch.context() as patched:
        patched.setattr(archive_state, "atomic_write", full)
        status, body = sweeper.ask("wal_archive")
        assert (status, body["code"]) == ("error", "disk_stop")
        sweeper.actor.tick(time.monotonic())  # and stops nobody
    assert sweeper.run()["state"] == "done"


# The queue


def test_a_full_queue_that_stops_keeps_every_file(log, target, start, caplog):
    target.rmdir()
    sweeper = start(target=str(target), queue_max=1, on_queue_full="stop")
    sweeper.run()
    assert sweeper.gauge("archive_queue_full") == 1
    assert "too many log files wait" in caplog.text
    assert sweeper.status.items() >= {"queue_files": 3, "gaps": []}.items()
    target.mkdir()
    assert sweeper.run()["state"] == "done"
    assert sweeper.gauge("archive_queue_full") == 0
    assert archived(target) == whole(log)


def test_a_full_queue_that_gives_up_leaves_a_gap_that_is_told(log, target, start, caplog):
    target.rmdir()
    newest = len(content(log, 3))
    sweeper = start(target=str(target), queue_max=newest, on_queue_full="gap")
    sweeper.actor.tick(time.monotonic())
    assert sweeper.status["gaps"] == [[1, 2]]
    assert sweeper.counted["gap"] == 2
    assert "make a full backup" in caplog.text
    sweeper.run()
    assert sweeper.gauge("archive_gap_active") == 1
    target.mkdir()
    assert sweeper.run()["state"] == "done"
    found = archived(target)
    told = json.loads(found.pop(f"{PREFIX}/gap-{1:020d}-{2:020d}"))
    assert (told["first"], told["last"]) == (1, 2)
    assert found == {f"{PREFIX}/{full_name(3)}": content(log, 3)}
    sweeper.tell()
    assert sweeper.ask("retention_run")[1]["files"] == 3  # a gap holds nothing
    sweeper.actor.archive.close_gaps(2)
    assert sweeper.status["gaps"] == [[1, 2]]
    sweeper.actor.archive.close_gaps(3)
    assert sweeper.status["gaps"] == []

    def over() -> bool:
        sweeper.actor.tick(time.monotonic())
        return sweeper.gauge("archive_gap_active") == 0

    eventually(over, "the alarm is over")


def test_files_deleted_while_there_was_no_archive_are_a_gap(log, target, start):
    start(target=str(target)).run()
    for _ in range(2):
        seal(log)
    (log.path / full_name(4)).unlink()
    sweeper = start(target=str(target))
    sweeper.actor.tick(time.monotonic())
    assert sweeper.status["gaps"] == [[4, 4]]
    assert sweeper.run()["state"] == "done"
    assert f"{PREFIX}/{full_name(5)}" in archived(target)


def test_gaps_that_touch_are_one_until_they_are_told(tmp_path, monkeypatch):
    state = ArchiveState(str(tmp_path))
    state.use("/target")
    state.give_up(2)
    assert state.give_up(4) == Gap(3, 4, False)
    assert state.gaps == (Gap(1, 4, False),)
    state.told(state.gaps[0])
    state.give_up(6)
    state.stored(7, 99)
    again = ArchiveState(str(tmp_path))
    assert again.gaps == (Gap(1, 4, True), Gap(5, 6, False))
    assert (again.target, again.through, again.last_success) == ("/target", 7, 99)
    monkeypatch.setattr(archive_state, "GAPS_MAX", 2)
    again.give_up(9)
    assert again.gaps == (Gap(1, 6, False), Gap(8, 9, False))
    again.use("/other")
    assert (again.through, again.gaps) == (0, ())


# Commands


def script(tmp_path: Path, text: str) -> str:
    """A program that gets path, name and the target directory."""
    path = tmp_path / "store.py"
    path.write_text(text)
    return f"{PYTHON} {path} {{path}} {{name}} {tmp_path / 'target'}"


STORE = """
import os, shutil, sys
path, name, target = sys.argv[1:]
to = os.path.join(target, os.path.basename(name))
if os.path.exists(to):
    sys.exit("it is there already")
shutil.copyfile(path, to + ".part")
os.rename(to + ".part", to)
"""
FETCH = """
import os, shutil, sys
path, name, target = sys.argv[1:]
with open(os.path.join(target, os.path.basename(name)), "rb") as file:
    shutil.copyfileobj(file, sys.stdout.buffer)
"""


def fetch(tmp_path: Path) -> str:
    path = tmp_path / "fetch.py"
    path.write_text(FETCH)
    return f"{PYTHON} {path} - {{name}} {tmp_path / 'target'}"


def by_name(log: LogDirectory) -> dict[str, bytes]:
    return {full_name(n): content(log, n) for n in (1, 2, 3)}


@pytest.mark.parametrize("verified", [False, True])
def test_a_command_stores_every_file(log, target, start, tmp_path, verified):
    verify = fetch(tmp_path) if verified else ""
    sweeper = start(command=script(tmp_path, STORE), verify_command=verify)
    assert sweeper.run()["state"] == "done"
    assert archived(target) == by_name(log)
    assert sweeper.counted == {"stored": 3}


FORK = "import os, signal; os.fork() and os.wait(); signal.pause()"


@pytest.mark.parametrize(
    "text, result, message",
    [
        ("import sys; sys.exit('no such bucket')", "failed", "ended with 1: no such bucket"),
        ("import sys; sys.exit(126)", "failed", "ended with 126"),
        ("import sys; sys.exit(255)", "failed", "ended with 255"),
        ("import os; os.kill(os.getpid(), 15)", "signal", "signal 15"),
        ("import os; os.kill(os.getpid(), 9)", "signal", "signal 9"),
        ("import signal; signal.pause()", "timeout", "archive.timeout"),
        (FORK, "timeout", "archive.timeout"),
    ],
)
def test_a_command_that_fails_is_counted_and_the_file_kept(
    log, target, start, tmp_path, text, result, message
):
    timeout = "2s" if result == "timeout" else "20s"
    sweeper = start(command=script(tmp_path, text), timeout=timeout)
    job = sweeper.run()
    assert job["state"] == "failed"
    assert message in job["error"]["message"]
    assert sweeper.counted == {result: 1}
    assert sweeper.status["through"] == 0
    sweeper.tell()
    assert sweeper.ask("retention_run")[1]["held"] == {"archive": 3}
    script(tmp_path, STORE)
    assert sweeper.run()["state"] == "done"
    assert archived(target) == by_name(log)


@pytest.mark.parametrize("command", ["/nowhere/store {path}", "/ {path}"])
def test_a_command_that_cannot_be_started_has_failed(log, start, command):
    sweeper = start(command=command)
    assert sweeper.run()["error"]["code"] == "archive_failed"
    assert sweeper.counted == {"failed": 1}


def test_what_the_machine_lacks_fails_the_attempt_and_not_the_actor(
    log, target, start, tmp_path, monkeypatch
):
    def full(*_: Any) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    sweeper = start(command=script(tmp_path, STORE))
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", full)
        job = sweeper.run()
    assert job["state"] == "failed" and "No usable temporary" in job["error"]["message"]
    assert sweeper.counted == {"failed": 1}
    assert sweeper.run()["state"] == "done"


def test_a_file_that_goes_while_its_copy_is_compared_fails_the_attempt(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x")
    copier = CommandCopier("rm {path}", "echo x", 10.0)
    with pytest.raises(ArchiveFailed, match="No such file"):
        copier.copy(str(path), "name", lambda _: None)


def test_a_file_that_goes_while_they_are_listed_does_not_wait(log, target, start, monkeypatch):
    def listed(name: str) -> int | None:
        return number_of(full_name(9) if name == "lock" else name)

    (log.path / "lock").touch()
    monkeypatch.setattr(archive, "number_of", listed)
    assert start(target=str(target)).status["queue_files"] == 3


def test_a_command_that_lies_is_found_out(log, target, start, tmp_path):
    sweeper = start(command=script(tmp_path, ""), verify_command=fetch(tmp_path))
    assert sweeper.run()["state"] == "failed"
    assert sweeper.counted == {"unverified": 1}


@pytest.mark.parametrize("change, result", [(b"", "present"), (b"more", "different")])
def test_a_command_that_finds_a_file_there(log, target, start, tmp_path, change, result):
    """Its copy was stored before, or something else was."""
    (target / full_name(1)).write_bytes(content(log, 1) + change)
    sweeper = start(command=script(tmp_path, STORE), verify_command=fetch(tmp_path))
    job = sweeper.run()
    assert job["state"] == ("failed" if change else "done")
    assert sweeper.counted.get(result) == 1
    assert (target / full_name(1)).read_bytes() == content(log, 1) + change


def test_a_part_of_the_copy_is_not_the_copy(log, target, start, tmp_path):
    (target / full_name(1)).write_bytes(content(log, 1)[:-1])
    sweeper = start(command=script(tmp_path, STORE), verify_command=fetch(tmp_path))
    assert sweeper.run()["state"] == "failed"
    assert sweeper.counted == {"different": 1}


def test_a_verification_that_hangs_is_no_proof(log, target, start, tmp_path):
    path = tmp_path / "hang.py"
    path.write_text("import signal; signal.pause()")
    verify = f"{PYTHON} {path} {{name}}"
    sweeper = start(command=script(tmp_path, STORE), verify_command=verify, timeout="2s")
    assert sweeper.run()["state"] == "failed"
    assert sweeper.counted == {"unverified": 1}


def test_paths_with_spaces_stay_one_argument(tmp_path, target):
    directory = tmp_path / "a directory"
    directory.mkdir()
    log = LogDirectory(directory)
    seal(log)
    sweeper = Sweeper(log, command=script(tmp_path, STORE))
    assert sweeper.run()["state"] == "done"
    assert list(archived(target)) == [full_name(1)]
    sweeper.actor.close()


# S3


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    pytest.importorskip("boto3", reason="meterd[s3] is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    with S3Server() as started:
        yield started


def test_a_bucket_is_an_archive(log, start, server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    client = server.client()
    sweeper = start(target=f"s3://{BUCKET}/log")
    assert sweeper.run()["state"] == "done"
    stored = client.get_object(Bucket=BUCKET, Key=f"log/{PREFIX}/{full_name(2)}")["Body"].read()
    assert stored == content(log, 2)
    os.unlink(log.path / archive_state.FILE_NAME)
    client.put_object(Bucket=BUCKET, Key=f"log/{PREFIX}/{full_name(2)}", Body=stored[:-1] + b"!")
    again = start(target=f"s3://{BUCKET}/log")
    assert again.run()["state"] == "failed"
    assert again.counted == {"present": 1, "different": 1}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert again.run()["error"]["code"] == "archive_failed"
    assert again.counted["failed"] == 1


def test_the_errors_of_stores_are_for_clients_too() -> None:
    assert (Exists("x").code, StoreFailed("x").code) == ("exists", "store_failed")


def test_braces_in_a_path_are_no_placeholders(tmp_path):
    source, target = tmp_path / "{name}.log", tmp_path / "copy of {path}"
    source.write_bytes(b"log")
    copier = CommandCopier("cp {path} {name}", "cat {name}", 20.0)
    assert copier.copy(str(source), str(target), lambda done: None) == STORED
    assert target.read_bytes() == b"log"
