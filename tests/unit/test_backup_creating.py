"""What the creation of a backup leaves in the store."""

import os
from contextlib import ExitStack

from meterd.actors.backups.creating import Creation, Node
from meterd.actors.backups.reading import Memory
from meterd.actors.backups.shelf import Shelf
from meterd.actors.files.totals_files import Covered
from meterd.protocol import checkpoint_format


def test_a_log_file_superseded_while_the_backup_is_made_is_not_left_in_it(tmp_path):
    """Its manifest would not name it, and nothing would ever check or use it."""
    directory, store = tmp_path / "data", tmp_path / "backups"
    directory.mkdir()
    store.mkdir()
    for number in (1, 2):
        (directory / f"wal-{number:020d}.log").write_bytes(b"log")

    node = Node(str(directory), None, cut=None, advance=lambda _: None, limit=lambda: 1 << 30)
    creation = Creation(node, Shelf.at(str(store)), "full", Memory())
    creation.name = "meterd-one"
    assert len(creation._copy_immutable(2, 3)) == 2
    for part in ("seg", "idx", "props"):
        (directory / f"seg-{1:012d}-{1:012d}.{part}").write_bytes(b"segment")
    names = creation._copy_immutable(2, 3)
    assert f"wal-{1:020d}.log" not in names
    held = sorted(path.name for path in store.rglob("*") if path.is_file())
    assert held == sorted(names)


def test_totals_files_merged_while_they_are_opened_are_opened_again(tmp_path, monkeypatch):
    """Without the one that took their place a backup would lack what has been folded."""
    state = {"kind": "checkpoint", "runs": [], "parts": []}
    (tmp_path / "checkpoint.bin").write_bytes(b"".join(checkpoint_format.encode(state, {})))
    old, merged = (tmp_path / Covered(1, last).name for last in (1, 2))
    old.write_bytes(b"totals")
    real = os.listdir

    def listed(path):
        names = real(path)
        if old.exists():
            old.rename(merged)
        return names

    monkeypatch.setattr(os, "listdir", listed)
    node = Node(str(tmp_path), None, cut=None, advance=lambda _: None, limit=lambda: 1 << 30)
    creation = Creation(node, Shelf.at(str(tmp_path)), "full", Memory())
    with ExitStack() as stack:
        opened = creation._open_all(stack)
    assert [one.name for one in opened] == ["checkpoint.bin", merged.name]
