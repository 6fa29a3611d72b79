"""Control totals of a directory: files with a segment, without one, the active one, segments."""

import pytest

from meterd.actors.backups import counting
from meterd.actors.backups.counting import Counting
from meterd.actors.backups.reading import Memory
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import full_name
from meterd.protocol.segment_format import SegmentName
from tests.support.log_builder import LoggedEvent, partition
from tests.support.log_directory import LogDirectory


@pytest.fixture
def log(tmp_path):
    """Three files of three events each, of which the second is refused."""
    log = LogDirectory(tmp_path)
    for number in (1, 2, 3):
        events = [LoggedEvent(a, f"{number}-{a}", 1, 10**18 + number, 1) for a in "abc"]
        log.write(events, {1})
        if number < 3:
            log.seal(segmented=number == 1)
    return log


def totals(log, memory=None, end=None):
    names = [path.name for path in log.path.iterdir()]
    cut = (log.builder.file_number, len(log.builder.data))
    made = Counting(str(log.path), memory or Memory(), lambda: None)
    return made.totals(names, end or cut, log.refused_of_waiting())


def expected(*numbers):
    sums = sum(10**18 + number for number in numbers)
    return {(partition(a), 1): (len(numbers), sums) for a in "ac"}


def test_refused_rows_do_not_count_wherever_their_bitmap_is(log):
    assert totals(log) == expected(1, 2, 3)


def test_nothing_behind_the_cut_counts(log):
    assert totals(log, end=(3, 4096)) == expected(1, 2)
    with pytest.raises(Corrupt):
        totals(log, end=(3, len(log.builder.data) + 512))


def test_what_is_known_of_a_file_is_not_read_again(log):
    memory = Memory()
    totals(log, memory)
    raw = bytearray((log.path / full_name(2)).read_bytes())
    raw[4_200] ^= 1
    for known in memory.totals:
        assert known.name in (SegmentName(1, 1).file(".seg"), full_name(2))
    (log.path / full_name(2)).unlink()
    (log.path / full_name(2)).write_bytes(raw)
    with pytest.raises(Corrupt, match=full_name(2)):  # another file of the same name
        totals(log, memory)


def test_rows_that_waited_are_counted_when_they_are_stored(log):
    memory = Memory()
    log.refused[2] = {0, 1, 2}  # none has its majority yet
    assert totals(log, memory) == expected(1, 3)
    log.refused[2] = {1}
    assert totals(log, memory) == expected(1, 2, 3)


def test_log_files_that_a_segment_covers_are_not_counted_as_well(log, monkeypatch):
    for part in ("seg", "idx", "props"):
        (log.path / f"seg-{1:012d}-{2:012d}.{part}").write_bytes(b"")
    asked = []

    def of_segment(directory, name):
        asked.append(name)
        return {(0, 1): (100, 7)}

    monkeypatch.setattr(counting, "segment_totals", of_segment)
    found = totals(log)
    assert asked == [SegmentName(1, 2)]
    both = expected(3)
    count, total = both.get((0, 1), (0, 0))
    assert found == both | {(0, 1): (count + 100, total + 7)}
