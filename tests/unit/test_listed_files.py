"""A directory is listed while its files are renamed and removed."""

from __future__ import annotations

import threading
from pathlib import Path

from meterd.actors.files.listed_files import sizes_in


def test_files_that_are_gone_by_then_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    (tmp_path / "wal.log").write_bytes(b"123")
    listing = sizes_in(str(tmp_path))
    names = [next(listing)[0]]  # the directory has been read by now
    for path in set(tmp_path.iterdir()) - {tmp_path / names[0]}:
        path.rename(tmp_path / "full")
    names += [name for name, _ in listing]
    assert len(names) == 1


def test_a_file_that_is_renamed_all_the_time(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    (tmp_path / "one").write_bytes(b"123")
    done = threading.Event()

    def rename() -> None:
        while not done.is_set():
            (tmp_path / "one").rename(tmp_path / "two")
            (tmp_path / "two").rename(tmp_path / "one")

    renaming = threading.Thread(target=rename)
    renaming.start()
    try:
        for _ in range(2_000):
            found = dict(sizes_in(str(tmp_path)))
            assert found.pop("kept") == 5
            assert set(found) <= {"one", "two"}
    finally:
        done.set()
        renaming.join()
