"""The index of a full file is the same however the file is read, and what is no log has none."""

from __future__ import annotations

import numpy as np
import pytest

from meterd.actors import indexing
from meterd.actors.indexing import Indexer
from meterd.actors.log_files import index_name
from meterd.protocol.errors import Corrupt
from meterd.protocol.index_format import parse_index
from meterd.protocol.log_format import full_name
from tests.support.log_builder import IDENTITY_KEY, LoggedEvent
from tests.support.log_directory import LogDirectory

KEY = np.frombuffer(IDENTITY_KEY, np.uint64).copy()


@pytest.fixture
def log(tmp_path) -> LogDirectory:
    """A full file of blocks from one sector to dozens, one of them larger than small windows."""
    log = LogDirectory(tmp_path)
    for count in (1, 3, 200, 1, 1, 40, 2, 90, 1):
        events = [LoggedEvent(f"a/{n % 7}", f"{count}-{n}", 1 + n % 3, n, n) for n in range(count)]
        log.write(events, {0})
    log.seal(indexed=True)
    return log


def remade(log: LogDirectory) -> bytes:
    """The index of the first file, made anew by another reader than the one in the tests."""
    bits = parse_index((log.path / index_name(1)).read_bytes()).refused.tobytes()
    indexer = Indexer(str(log.path), KEY)
    for _ in range(2):  # the second time in memory that was used
        assert indexer.write(1, bits) == indexer.count_rows(1) == 339
    return (log.path / index_name(1)).read_bytes()


@pytest.mark.parametrize("window", [64, 512, 1024, 4096, 5000, 20_000, 1 << 20])
def test_an_index_does_not_depend_on_the_windows(log, window, monkeypatch):
    whole = (log.path / index_name(1)).read_bytes()
    monkeypatch.setattr(indexing, "WINDOW_SIZE", window)
    assert remade(log) == whole


@pytest.mark.parametrize("window", [1024, 1 << 20])
@pytest.mark.parametrize("left", [-1, -600, -9_000, -1_000_000])
def test_a_file_that_is_cut_is_corrupt(log, window, left, monkeypatch):
    monkeypatch.setattr(indexing, "WINDOW_SIZE", window)
    path = log.path / full_name(1)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(Corrupt):
        remade(log)


@pytest.mark.parametrize("tail", [bytes(512), bytes(30), b"\1" * 512, b"MBLK" + b"\xff" * 508])
def test_a_file_that_goes_on_behind_its_blocks_is_corrupt(log, tail):
    path = log.path / full_name(1)
    end = path.stat().st_size
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(Corrupt, match=f"offset {end}"):
        remade(log)
