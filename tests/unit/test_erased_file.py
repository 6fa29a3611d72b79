"""The list of erasures beside the state: it only grows, and goes from one directory to another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meterd.actors.keeping.erased_file import FILE_NAME, add_erasures, carry_over, read_erasures
from meterd.core.state.erasures import Erasure, erasure_command, erasure_of
from meterd.protocol.errors import Corrupt

KEY = np.array([1, 2], np.uint64)


def erasure(account: str, index: int = 1) -> Erasure:
    command, partition = erasure_command(KEY, account, False, "once")
    return erasure_of(command, partition, index, 0)


@pytest.fixture
def directories(tmp_path):
    made = [tmp_path / name for name in ("old", "new")]
    for path in made:
        path.mkdir()
    return [str(path) for path in made]


def test_it_only_grows(tmp_path):
    directory = str(tmp_path)
    assert read_erasures(directory) == []
    add_erasures(directory, [erasure("a")])
    add_erasures(directory, [erasure("b")])
    assert read_erasures(directory) == [erasure("b"), erasure("a")]


def test_what_is_known_anew_goes_before_what_the_file_said(tmp_path):
    """An erasure that was logged again has another place in the log."""
    directory = str(tmp_path)
    add_erasures(directory, [erasure("a", 7)])
    add_erasures(directory, [erasure("a", 3)])
    assert read_erasures(directory) == [erasure("a", 3)]


def test_a_restored_directory_knows_what_was_erased_since(directories):
    old, new = directories
    add_erasures(new, [erasure("a")])
    add_erasures(old, [replace(erasure("a"), floor=9), erasure("b")])
    assert carry_over(old, new) == 1
    assert read_erasures(new) == [erasure("a"), erasure("b")]
    assert carry_over(old, new) == 0


def test_nothing_to_carry_over_makes_no_file(directories, tmp_path):
    old, new = directories
    assert carry_over(old, new) == 0
    assert not (tmp_path / "new" / FILE_NAME).exists()


def test_a_damaged_list_is_no_empty_one(directories, tmp_path):
    old, new = directories
    (tmp_path / "old" / FILE_NAME).write_bytes(b"damaged")
    with pytest.raises(Corrupt):
        carry_over(old, new)


def test_no_two_erasures_are_taken_for_one() -> None:
    """A second one with the name of the first is the first, said again, and erases nothing."""
    asked = [("gdpr/2026", "acme"), ("gdpr", "2026/acme"), ("4/gdpr", "acme"), ("4", "gdpr/acme")]
    ids = {erasure_command(KEY, account, False, name)[0]["id"] for name, account in asked}
    assert len(ids) == len(asked)


def test_an_erasure_of_all_below_is_another_one_under_the_same_name():
    """It was taken for that of the account alone: what lay below stayed, and was called erased."""
    names = ("once", "a/b", "/a", "//a")
    ids = {
        erasure_command(KEY, account, subtree, name)[0]["id"]
        for name in names
        for account in ("acme", "/acme", "//acme")
        for subtree in (False, True)
    }
    assert len(ids) == len(names) * 3 * 2
