"""What a start checks, in which order, and what it says about damage."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from meterd.actors.actor import Lifeline
from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_recovery import Owner
from meterd.actors.options import Options
from meterd.actors.starting import identity, start_checks
from meterd.actors.wal_writer import WalWriter
from meterd.core.log.scan import Groups
from meterd.protocol import checkpoint_format, log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import full_name
from tests.support.log_life import meta_entry
from tests.support.replica import Replica

SEGMENT_SIZE = 4 << 20
FILES = 4


class Silent(WalWriter):
    """Sends nothing."""

    def send(self, actor: str, frames: list[bytes]) -> None:
        pass


def start(directory: Path, lifeline: Lifeline) -> Silent:
    sections = {
        "node": {"data_dir": str(directory), "id": 7},
        "wal": {"segment_size": SEGMENT_SIZE},
    }
    writer = Silent(Options.from_mapping(sections), str(directory), lifeline)
    writer.open()
    return writer


@pytest.fixture
def directory(tmp_path: Path, lifeline: Lifeline) -> Path:
    """Three full log files and an active one; two checkpoints, the newest at the third file."""
    identity.write(str(tmp_path), identity.new_cluster(7))
    writer, replica, groups, at = start(tmp_path, lifeline), Replica(Groups()), Groups(), {}
    while writer._log.file_number < FILES:
        entry = meta_entry(replica, Random(1), 900_000)
        writer.handle([b"append", entry.sequence.to_bytes(8, "little"), entry.head, entry.payload])
        writer.flush()
        groups.follow(log_format.parse_frames(entry.head, entry.payload))
        at[writer._log.file_number] = groups.packed()
    writer.close()
    for name, number in ((start_checks.CHECKPOINTS[1], 2), (start_checks.CHECKPOINTS[0], 3)):
        state = {"log": {"file_number": number, **at[number]}}
        encoded = checkpoint_format.encode(state, {"counters": FILLER})
        (tmp_path / name).write_bytes(b"".join(encoded))
    return tmp_path


FILLER = np.arange(64, dtype=np.int64)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The checks that were logged, in order; each has its duration."""
    found = [one for one in caplog.records if one.getMessage() in start_checks.ORDER]
    assert all(re.fullmatch(r"\d+\.\d{3}", one.fields["seconds"]) for one in found)  # type: ignore[attr-defined]
    return [one.getMessage() for one in found]


def test_a_sound_directory_passes_the_checks_in_their_order(directory, lifeline, caplog):
    caplog.set_level(logging.INFO)
    start(directory, lifeline).close()
    assert said(caplog) == list(start_checks.ORDER[2:])


def damage_checkpoints(directory: Path) -> Path:
    for name in start_checks.CHECKPOINTS:
        flip(directory / name, -1 - 64)
    return directory / start_checks.CHECKPOINTS[1]


def damage_log(directory: Path) -> Path:
    flip(directory / full_name(3), 5_000)
    return directory / full_name(3)


def damage_segment(directory: Path) -> Path:
    flip(directory / full_name(1), 20)
    return directory / full_name(1)


Damage = Callable[[Path], Path]
# In the order of the checks.
DAMAGES: list[Damage] = [damage_checkpoints, damage_log, damage_segment]


@pytest.mark.parametrize("first", range(len(DAMAGES)))
def test_the_first_check_that_fails_ends_the_start_and_names_the_file(
    directory, lifeline, caplog, first
):
    """Whatever else is damaged behind it."""
    caplog.set_level(logging.INFO)
    paths = [damage(directory) for damage in DAMAGES[first:]]
    with pytest.raises(Corrupt) as caught:
        start(directory, lifeline)
    assert caught.value.path == str(paths[0])
    assert said(caplog) == list(start_checks.ORDER[2 : 2 + first])


def test_a_damaged_newest_checkpoint_falls_back(directory, lifeline, caplog):
    flip(directory / start_checks.CHECKPOINTS[0], -1 - 64)
    start(directory, lifeline).close()
    assert "checkpoint section counters; the one before is used" in caplog.text


@pytest.mark.parametrize(
    ("size", "reason"),
    [(0, "not a size"), (100, "not a size"), (4096 + 7, "not a size"), (4096, None)],
)
def test_a_full_file_has_a_size_that_blocks_can_make(directory, lifeline, size, reason):
    path = directory / full_name(1)
    os.truncate(path, size)
    if reason is None:
        start(directory, lifeline).close()  # what is missing is noticed by who reads the blocks
        return
    with pytest.raises(Corrupt, match=reason) as caught:
        start(directory, lifeline)
    assert (caught.value.path, caught.value.offset) == (str(path), size)


def test_a_file_of_another_node_or_number_is_found(directory):
    who = identity.read(str(directory))
    owner = Owner(who.node_id, who.cluster_id, who.identity_key)
    disk, begin = LocalDisk(), start_checks.check_checkpoints(LocalDisk(), str(directory))
    assert start_checks.check_segments(disk, str(directory), owner, begin) == 2
    with pytest.raises(Corrupt, match="another node"):
        start_checks.check_segments(disk, str(directory), owner._replace(node_id=8), begin)
    (directory / full_name(1)).write_bytes((directory / full_name(2)).read_bytes())
    with pytest.raises(Corrupt, match="file 2 where file 1 belongs"):
        start_checks.check_segments(disk, str(directory), owner, begin)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_totals_file_is_found(directory, lifeline, damage):
    """What it stands for is nowhere else; a question must not be the first to find out."""
    path = directory / "totals-000000000001-000000000002.tot"
    raw = b"".join(checkpoint_format.encode({"kind": "totals"}, {"rows": np.arange(100)}))
    path.write_bytes(raw)
    start(directory, lifeline)
    changed = {"cut": raw[:-64], "flip": raw[:30] + b"\xff" + raw[31:], "empty": b""}[damage]
    path.write_bytes(changed)
    with pytest.raises(Corrupt) as caught:
        start(directory, lifeline)
    assert caught.value.path == str(path)
