"""Log files as a question reads them, while the WAL-writer goes on."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.questions.log_files import View
from meterd.core.questions.zones import UTC
from meterd.core.state.registry import Registry
from meterd.protocol.errors import Corrupt, Internal, RangeExpired
from meterd.protocol.limits import I64_MIN
from meterd.protocol.log_format import FILE_HEADER_SIZE, full_name
from meterd.protocol.metric import MetricDefinition
from meterd.protocol.segment_format import SUFFIXES, SegmentName
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory

ROOT = Path(__file__).resolve().parent.parent.parent


def read_across_a_seal(path: Path) -> None:
    """Read the active file, let it become full at the end of a page, read what came since."""
    log = LogDirectory(path)
    log.write([LoggedEvent("acme", "0", 0, 1, 1)])
    assert len(log.view().log_file(1).all_rows()) == 1
    count = 1
    while len(log.builder.data) % mmap.PAGESIZE:
        log.write([LoggedEvent("acme", f"{count}", 0, 1, 1)])
        count += 1
    log.seal(segmented=False)
    assert len(log.view().log_file(1).all_rows()) == count


def test_a_file_that_was_mapped_while_active_is_read_to_its_end_once_full(tmp_path: Path) -> None:
    """It is cut behind its last block: to touch what was mapped beyond is a bus error.

    In a process of its own, because that is what a failure would end.
    """
    program = (
        "import sys, pathlib\n"
        "from tests.unit.test_log_files import read_across_a_seal\n"
        "read_across_a_seal(pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_who_reads_less_far_sees_no_more_though_another_has_read_on(tmp_path: Path) -> None:
    """As a feed, which reads up to where something waits, and a question, which reads all."""
    log = LogDirectory(tmp_path)
    ends = []
    for number in range(4):
        log.write([LoggedEvent("acme", f"{number}-{n}", 0, 1, 1) for n in range(3)])
        ends.append((1, len(log.builder.data)))
        if number == 1:
            assert len(log.view().log_file(1).all_rows()) == 6
    refused = log.refused_of_waiting()
    for place in (0, 3, 1, 2, 0):
        view = View(log.files, ends[place], refused)
        assert view.log_file(1).row_count == 3 * (place + 1)
        assert len(view.log_file(1).all_rows()) == 3 * (place + 1)


def test_a_file_deleted_while_it_is_read_is_expired(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path)
    log.write([LoggedEvent("acme", "before", 0, 1, 1)])
    assert len(log.view().log_file(1).all_rows()) == 1
    log.write([LoggedEvent("acme", "after", 0, 1, 1)])
    log.seal(segmented=False)
    view = log.view()
    (tmp_path / full_name(1)).unlink()
    with pytest.raises(RangeExpired):
        view.log_file(1)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_before_the_checkpoint_is_refused_when_read(data: st.DataObject) -> None:
    """A start reads the log from the checkpoint on: what lies before it nobody has checked."""
    with TemporaryDirectory() as home:
        log = LogDirectory(Path(home))
        for name in ("a", "b", "c"):
            log.write([LoggedEvent("acme", f"{name} {number}", 0, 1, 1) for number in range(20)])
        log.seal(segmented=False)
        path = Path(home, full_name(1))
        raw = bytearray(path.read_bytes())
        at = data.draw(st.integers(FILE_HEADER_SIZE, len(raw) - 1), label="offset")
        raw[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
        path.write_bytes(raw)
        with pytest.raises(Corrupt) as found:
            log.view().log_file(1)
        assert found.value.path == full_name(1)
        assert found.value.offset <= at


def test_a_segment_merged_while_a_part_of_it_was_folded_stands_for_nothing(tmp_path: Path) -> None:
    """What the totals hold is not counted twice, and what only it holds is no silent gap."""
    log, registry = LogDirectory(tmp_path), Registry()
    definition = MetricDefinition.from_map({"code": "m", "aggregation": "sum"})
    registry.put(definition, UTC, False, 1)
    number = registry.entries[0].number
    for name in ("a", "b"):
        log.write([LoggedEvent("acme", name, number, 1, 1)])
        log.seal(segmented=True)
    log.files.refresh()
    second = log.files.segments.complete()[1]
    merged = replace(second, name=SegmentName(1, 2), header=replace(second.header, first=1, last=2))

    def parts() -> list[tuple[int, int]]:
        log.files.segments._known[merged.name] = ((0, 0), merged)
        return [(part.first, part.last) for part in log.view().parts]

    assert parts() == [(1, 2), (3, 3)]
    log.fold([1], registry, I64_MIN)
    assert parts() == [(2, 2), (3, 3)]
    for suffix in SUFFIXES:
        (tmp_path / SegmentName(2, 2).file(suffix)).unlink()
    (tmp_path / full_name(2)).unlink()
    log.files.refresh()
    with pytest.raises(Internal, match="log file 2 is missing"):
        parts()
