"""A backup is restored only when every backup that it is built on is what it was."""

import pytest

from meterd.actors.backups.restoring import choose
from meterd.actors.backups.shelf import Shelf
from meterd.protocol.backup_manifest import FILE_NAME
from meterd.protocol.errors import Corrupt
from tests.support.backup_manifests import manifest

CHAIN = ("meterd-full", "meterd-incr-1", "meterd-incr-2")


@pytest.fixture
def store(tmp_path):
    """Three backups, each built on the one before, without the files they name."""
    shelf = Shelf.at(str(tmp_path))
    for place, name in enumerate(CHAIN):
        (tmp_path / f"{name}.partial").mkdir()
        shelf.publish(manifest(name, chain=CHAIN[:place], finished=place))
    return tmp_path


def chosen(store, name):
    return choose(Shelf.at(str(store)).contents(), name).name


def test_what_is_built_on_whole_backups_is_chosen(store):
    assert chosen(store, None) == CHAIN[2]
    assert [chosen(store, name) for name in CHAIN] == list(CHAIN)


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_flipped_bit_in_a_manifest_refuses_what_is_built_on_it(store, damaged):
    path = store / CHAIN[damaged] / FILE_NAME
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 4
    path.write_bytes(raw)
    for place, name in enumerate(CHAIN):
        if place < damaged:
            assert chosen(store, name) == name
            continue
        with pytest.raises(Corrupt) as refused:
            chosen(store, name)
        assert refused.value.path == f"{CHAIN[damaged]}/{FILE_NAME}"


def test_a_base_that_is_gone_is_named(store):
    (store / CHAIN[1] / FILE_NAME).unlink()
    (store / CHAIN[1]).rmdir()
    for name in (None, CHAIN[2]):
        with pytest.raises(Corrupt) as refused:
            chosen(store, name)
        assert refused.value.path == f"{CHAIN[1]}/{FILE_NAME}"


def test_another_backup_under_the_name_of_a_base_is_refused(store):
    Shelf.at(str(store)).remove(CHAIN[1])
    (store / f"{CHAIN[1]}.partial").mkdir()
    Shelf.at(str(store)).publish(manifest(CHAIN[1]))
    with pytest.raises(Corrupt) as refused:
        chosen(store, CHAIN[2])
    assert refused.value.path == f"{CHAIN[1]}/{FILE_NAME}"
