"""fsck: a sound directory is clean, every flipped bit is found, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from crc32c import crc32c

from meterd import admin
from meterd.actors.checking import fsck_files
from meterd.actors.checking.fsck import Fsck
from meterd.actors.checking.fsck_files import DAMAGE, NOTE, WARNING, Finding
from meterd.actors.files.disk import DirectoryLock
from meterd.actors.starting import peer_copy, storage_versions
from meterd.protocol.errors import BootFailed
from meterd.protocol.log_format import SECTOR_SIZE, full_name
from tests.support import stored_directory

FLIPS = 12


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored directory of this version."""
    home = tmp_path_factory.mktemp("stored")
    stored_directory.open_archive(stored_directory.FOLDER, home)
    return home / "data"


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Iterator[Path]:
    copy = tmp_path / "data"
    shutil.copytree(original, copy)
    yield copy
    shutil.rmtree(copy)


def findings(directory: Path, level: str = "full") -> list[Finding]:
    checks = list(Fsck(str(directory), level).run())  # type: ignore[arg-type]
    assert all(check.seconds >= 0 for check in checks)
    return [finding for check in checks for finding in check.findings]


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def run(*args: str) -> int:
    return admin.run("meterctl", ["fsck", *args])


def sums(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns)
        for path in directory.iterdir()
    }


KINDS = [
    "node.json",
    "checkpoint.bin",
    "checkpoint.prev.bin",
    "ids-*.run",
    "ids-*.part",
    "seg-*.seg",
    "seg-*.idx",
    "seg-*.props",
    "wal-*.log",
    "wal.log",
    "metric_registry.bin",
    "partition_map.bin",
    "erased.bin",
    "archive.bin",
    "disk_history.bin",
    "refused.log",
    "wal.spare",
]


def test_the_stored_directory_has_every_kind_and_is_clean(directory, capsys):
    assert all(list(directory.glob(kind)) for kind in KINDS)
    before = sums(directory)
    for level in ("quick", "full"):
        assert run("-o", "json", "--data-dir", str(directory), "--level", level) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["result"] == "clean"
        assert [check["result"] for check in said["checks"]] == ["ok"] * len(said["checks"])
    assert run("-o", "table", "--data-dir", str(directory)) == 0
    assert "log without gaps" in capsys.readouterr().out
    assert sums(directory) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found_and_named(directory, kind):
    random = Random(kind)
    for _ in range(FLIPS):
        path = random.choice(sorted(directory.glob(kind)))
        at, bit = random.randrange(path.stat().st_size), random.randrange(8)
        flip(path, at, bit)
        found = findings(directory)
        harmless = kind in ("refused.log", "wal.spare", "wal.log")
        wanted = {DAMAGE, WARNING} if harmless else {DAMAGE}
        assert any(one.file == path.name and one.severity in wanted for one in found), (
            path.name,
            at,
            bit,
            found,
        )
        flip(path, at, bit)
    assert not findings(directory)


def test_all_damage_is_found_also_in_one_file(directory, capsys):
    log, idx = directory / full_name(2), "seg-000000000001-000000000001.idx"
    size = log.stat().st_size
    for at in (size // 4, size // 2, size - SECTOR_SIZE):
        flip(log, at)
    flip(directory / idx, 20)
    flip(directory / "disk_history.bin", 100)
    found = [one for one in findings(directory) if one.severity == DAMAGE]
    assert [one.file for one in found if one.file == log.name] == [log.name] * 3
    assert {idx, "disk_history.bin"} < {one.file for one in found}
    assert run("--data-dir", str(directory), "--level", "full") == 9
    assert json.loads(capsys.readouterr().out)["result"] == "damage"


def test_a_log_file_that_nothing_covers_is_missed(directory):
    (directory / full_name(2)).unlink()
    assert not findings(directory)  # its segment has it all
    (directory / "seg-000000000002-000000000002.idx").unlink()
    found = findings(directory)
    assert [one.file for one in found if one.severity == DAMAGE] == [full_name(2)]
    assert {one.severity for one in found} == {DAMAGE, NOTE}


@pytest.mark.parametrize("kind", ["node.json", "wal.log", "ids-*.run", "ids-*.part", "seg-*.seg"])
def test_a_lost_file_is_found(directory, kind):
    path = min(directory.glob(kind))
    path.unlink()
    assert any(one.severity == DAMAGE for one in findings(directory, "quick"))


def test_a_log_file_whose_segment_is_lost_cannot_be_counted(directory):
    """Which of its rows were stored was only in the segment."""
    (directory / "seg-000000000002-000000000002.idx").unlink()
    found = [one for one in findings(directory) if one.severity == DAMAGE]
    assert [one.file for one in found] == [full_name(2)]


def test_a_torn_tail_is_a_warning_and_stays(directory, capsys):
    path = directory / "wal.log"
    data = path.read_bytes()
    end = -(-len(data.rstrip(b"\0")) // SECTOR_SIZE) * SECTOR_SIZE
    with path.open("r+b") as file:  # the first sector of a block was not written
        file.seek(end + SECTOR_SIZE)
        file.write(b"torn")
    before = sums(directory)
    assert run("--data-dir", str(directory)) == 1
    assert "a start removes it" in capsys.readouterr().out
    assert [(one.file, one.offset) for one in findings(directory)] == [("wal.log", end)]
    assert sums(directory) == before


def test_an_unknown_file_is_reported_and_left_alone(directory, capsys):
    (directory / "notes.txt").write_text("mine")
    assert run("--data-dir", str(directory)) == 1
    assert "notes.txt" in capsys.readouterr().out
    assert (directory / "notes.txt").read_text() == "mine"


def test_what_a_copy_of_a_peer_leaves_is_no_stranger(directory):
    (directory / peer_copy.COPIED).write_text('{"nodes": [2]}')
    assert not [one for one in fsck_files.names(str(directory), []) if one.severity == WARNING]


def test_a_directory_in_use_or_missing_is_refused(directory, tmp_path, capsys):
    lock = DirectoryLock(str(directory))
    assert lock.acquire()
    assert run("--data-dir", str(directory)) == 6
    assert "in use" in capsys.readouterr().err
    lock.release()
    assert run("--data-dir", str(directory)) == 0
    assert run("--data-dir", str(tmp_path / "none")) == 5


@pytest.mark.parametrize(
    "kind",
    ["wal.log", "checkpoint.bin", "ids-*.run", "seg-*.seg", "seg-*.props", "seg-*.idx"],
)
def test_a_file_of_a_newer_version_is_refused_and_no_damage(directory, kind, capsys):
    path = min(directory.glob(kind))
    data = bytearray(path.read_bytes())
    known = storage_versions.FORMATS[bytes(data[:8])]
    crc_at, data[8] = known.crc_at, known.version + 1
    path.write_bytes(data)
    storage_versions.refuse_newer(str(directory))  # its checksum says that it is damage
    data[crc_at : crc_at + 4] = crc32c(bytes(data[:crc_at])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(BootFailed, match="newer version") as caught:
        storage_versions.refuse_newer(str(directory))
    assert caught.value.exit_code == 79
    assert run("--data-dir", str(directory)) == 6
    assert path.name in capsys.readouterr().out


def test_refused_events_of_a_newer_version_are_refused(directory):
    with (directory / "refused.log").open("r+b") as file:
        os.pwrite(file.fileno(), b"\2", 8)
    with pytest.raises(BootFailed, match="newer version"):
        storage_versions.refuse_newer(str(directory))
