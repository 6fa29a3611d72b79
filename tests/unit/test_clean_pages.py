"""Pages of files that only loading needed go, and nothing that was written does."""

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from meterd.actors.machine.clean_pages import SMAPS, clean_mappings, give_back

SIZE = 64 * mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


@pytest.fixture
def mapping(tmp_path: Path) -> Iterator[int]:
    """A private mapping of a file, as the loader makes them; yields its address."""
    path = tmp_path / "library"
    path.write_bytes(b"\x5a" * SIZE)
    with path.open("rb") as file:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = libc.mmap(None, SIZE, protection, mmap.MAP_PRIVATE, file.fileno(), 0)
    assert address != ctypes.c_void_p(-1).value
    yield address
    assert libc.munmap(ctypes.c_void_p(address), SIZE) == 0


def protect(address: int) -> None:
    assert libc.mprotect(ctypes.c_void_p(address), SIZE, mmap.PROT_READ) == 0


def clean_bytes(address: int) -> int:
    """How much of the mapping is in memory, if it holds only what its file holds."""
    found = clean_mappings(SMAPS.read_text().splitlines())
    return sum(resident for start, end, resident in found if start <= address < end)


def test_what_was_only_read_goes_and_comes_again(mapping: int) -> None:
    protect(mapping)
    assert ctypes.string_at(mapping, SIZE) == b"\x5a" * SIZE
    assert clean_bytes(mapping) == SIZE
    assert give_back() >= SIZE
    assert clean_bytes(mapping) == 0
    assert ctypes.string_at(mapping, SIZE) == b"\x5a" * SIZE


def test_what_was_written_stays(mapping: int) -> None:
    """As addresses that the loader has put in, before it protected them."""
    ctypes.memset(mapping + mmap.PAGESIZE, 7, 8)
    protect(mapping)
    ctypes.string_at(mapping, SIZE)
    give_back()
    assert ctypes.string_at(mapping + mmap.PAGESIZE, 8) == b"\7" * 8
    assert clean_bytes(mapping) == 0  # it is not clean


def test_what_may_be_written_is_left_alone(mapping: int) -> None:
    ctypes.string_at(mapping, SIZE)
    starts = [start for start, _, _ in clean_mappings(SMAPS.read_text().splitlines())]
    assert starts
    assert mapping not in starts
