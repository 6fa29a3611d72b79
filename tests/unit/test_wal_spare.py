"""How fast the next log file is filled, and when that is given up."""

from __future__ import annotations

from meterd.actors.log.wal_spare import BackgroundSpare
from tests.support.crash_disk import CrashDisk

PIECE = 4096


def test_filling_ends_when_the_active_file_grows_faster() -> None:
    """What it had grown before does not count: the disk was not asked for both then."""
    spare = BackgroundSpare(CrashDisk(), "/data", 16 * PIECE)
    spare.appended = 100 * PIECE
    assert spare.pace(PIECE)
    spare.appended = 102 * PIECE
    assert spare.pace(2 * PIECE)
    spare.appended = 103 * PIECE + 1
    assert not spare.pace(3 * PIECE)


def test_a_file_that_was_not_filled_to_its_end_is_used_all_the_same() -> None:
    disk = CrashDisk()
    spare = BackgroundSpare(disk, "/data", 16 * PIECE)
    spare.prepare()
    descriptor = spare.descriptor_for(PIECE)
    assert disk.size(descriptor) == 16 * PIECE
    spare.close()


def test_the_next_file_is_paced_by_its_own_growth() -> None:
    disk = CrashDisk()
    spare = BackgroundSpare(disk, "/data", 16 * PIECE)
    spare.appended = 100 * PIECE
    spare.prepare()
    spare.descriptor_for(PIECE)
    spare.used()
    spare.appended = 50 * PIECE  # of the file that is active now
    spare.prepare()
    assert disk.size(spare.descriptor_for(PIECE)) == 16 * PIECE
    spare.appended = 51 * PIECE
    assert not spare.pace(PIECE - 1)
    spare.close()
