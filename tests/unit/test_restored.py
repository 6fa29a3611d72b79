"""What a restored directory says about itself."""

import pytest

from meterd.actors.starting import restored
from meterd.actors.starting.restored import Restored
from meterd.protocol.errors import Corrupt

ONE = Restored("meterd-1", 1_000, 7, 1)


def test_it_comes_back(tmp_path):
    assert restored.read(str(tmp_path)) is None
    assert restored.held_until(str(tmp_path), 10.0) == 0
    restored.write(str(tmp_path), ONE)
    assert restored.read(str(tmp_path)) == ONE
    assert restored.held_until(str(tmp_path), 10.0) == 1_000 + 10 * 10**9
    assert restored.held_until(str(tmp_path), 0.0) == 1_000


def test_damage_is_not_taken_for_no_restore(tmp_path):
    restored.write(str(tmp_path), ONE)
    path = tmp_path / restored.FILE_NAME
    raw = bytearray(path.read_bytes())
    for at in range(len(raw)):
        changed = raw.copy()
        changed[at] ^= 4
        path.write_bytes(changed)
        try:
            assert restored.read(str(tmp_path)) == ONE  # white space
        except Corrupt:
            continue
    path.write_bytes(b"")
    with pytest.raises(Corrupt):
        restored.held_until(str(tmp_path), 1.0)
