"""What the creation of a backup leaves in the store."""

from meterd.actors.backups.creating import Creation, Node
from meterd.actors.backups.reading import Memory
from meterd.actors.backups.shelf import Shelf


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
