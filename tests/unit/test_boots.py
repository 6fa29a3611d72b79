"""The number of a start rises, whatever the clock and the file say."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterd.actors.replicating import boots
from meterd.protocol.errors import DiskFull


def test_boots_rise_when_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = boots.next_boot(str(tmp_path))
    monkeypatch.setattr("time.time_ns", lambda: 5)
    assert boots.next_boot(str(tmp_path)) == first + 1
    assert boots.next_boot(str(tmp_path)) == first + 2


@pytest.mark.parametrize("content", [b"", b"{}", b'{"boot": "x"}', b"[]", b"\xff"])
def test_without_a_readable_file_the_clock_has_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / boots.BOOT_FILE).write_bytes(content)
    assert boots.next_boot(str(tmp_path)) > 1_700_000_000 * 10**9


def test_a_full_disk_stops_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskFull("no room", "boot.json")

    monkeypatch.setattr("meterd.actors.files.disk.atomic_write", full)
    assert boots.next_boot(str(tmp_path)) > 0
