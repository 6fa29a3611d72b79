"""A log file is found by its number while it becomes full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meterd.actors.log import opened_log
from meterd.actors.log.opened_log import open_log
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import ACTIVE_NAME, full_name, parse_file_header
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory, SealsMeanwhile


def number_of(descriptor: int) -> int:
    with os.fdopen(descriptor, "rb") as file:
        return parse_file_header(file.read())[0].file_number


def test_it_is_found_under_either_name(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path)
    log.write([LoggedEvent("acme", "a", 0, 1, 1)])
    name, descriptor = open_log(str(tmp_path), 1)
    assert (name, number_of(descriptor)) == (ACTIVE_NAME, 1)
    log.seal(segmented=False)
    name, descriptor = open_log(str(tmp_path), 1)
    assert (name, number_of(descriptor)) == (full_name(1), 1)
    with pytest.raises(FileNotFoundError):
        open_log(str(tmp_path), 7)


def test_one_that_becomes_full_between_two_looks_is_not_taken_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogDirectory(tmp_path)
    log.write([LoggedEvent("acme", "a", 0, 1, 1)])

    monkeypatch.setattr(opened_log, "os", SealsMeanwhile(log))
    name, descriptor = open_log(str(tmp_path), 1)
    assert (name, number_of(descriptor)) == (full_name(1), 1)


def test_a_damaged_header_is_said(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path)
    log.write([LoggedEvent("acme", "a", 0, 1, 1)])
    path = tmp_path / ACTIVE_NAME
    raw = bytearray(path.read_bytes())
    raw[40] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Corrupt, match=ACTIVE_NAME):
        open_log(str(tmp_path), 1)
