"""Which backup is restored: one whose whole chain is what it was, of the node that is meant."""

import pytest

from meterd.actors.backups.restoring import choose
from meterd.actors.backups.shelf import Shelf
from meterd.actors.housekeeping.object_store import DirectoryStore
from meterd.actors.starting import identity
from meterd.protocol.backup_manifest import FILE_NAME
from meterd.protocol.errors import BadRequest, Corrupt, NotFound
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


@pytest.fixture
def shared(tmp_path):
    """A store of three nodes, of which the last has made the newest backup."""
    shelf = Shelf.at(str(tmp_path / "store"))
    own = identity.new_cluster(2)
    for number in (1, 2, 3):
        name = f"meterd-node-{number}"
        (tmp_path / "store" / f"{name}.partial").mkdir(parents=True)
        fields = {"cluster_id": own.cluster_id_hex, "node_id": number, "finished": number}
        shelf.publish(manifest(name, **fields))
    (tmp_path / "data").mkdir()
    identity.write(str(tmp_path / "data"), own)
    return shelf.contents(), str(tmp_path / "data")


def test_of_several_nodes_that_of_the_directory_is_chosen_or_the_one_named(shared):
    contents, data_dir = shared
    assert choose(contents, None, data_dir=data_dir).node_id == 2
    assert choose(contents, None, 3, data_dir).node_id == 3
    assert choose(contents, None, 1).node_id == 1
    assert choose(contents, "meterd-node-3", data_dir=data_dir).node_id == 3
    with pytest.raises(NotFound, match="node 4"):
        choose(contents, None, 4, data_dir)
    with pytest.raises(BadRequest, match="of node 3"):
        choose(contents, "meterd-node-3", 2)


def test_without_either_the_nodes_are_named(shared, tmp_path):
    contents, _ = shared
    for data_dir in ("", str(tmp_path / "nothing")):
        with pytest.raises(BadRequest, match="nodes 1, 2, 3; say which with --node"):
            choose(contents, None, data_dir=data_dir)


def test_nodes_of_one_number_in_two_clusters_are_told_apart(shared):
    contents, data_dir = shared
    other = manifest("meterd-other", node_id=2, finished=9)
    contents.manifests[other.name] = other
    assert choose(contents, None, 2, data_dir).name == "meterd-node-2"
    with pytest.raises(BadRequest, match="node 2 of several clusters"):
        choose(contents, None, 2)


@pytest.mark.parametrize("meanwhile", ["made", "deleted"])
def test_what_gets_another_name_while_it_is_looked_at_is_no_damage(store, monkeypatch, meanwhile):
    """As when another node's backup is finished, or one is pruned."""
    whole, partial = store / CHAIN[2], store / f"{CHAIN[2]}.partial"
    ends = [whole, partial] if meanwhile == "deleted" else [partial, whole]
    if meanwhile == "made":
        whole.rename(partial)
    listed = DirectoryStore.list

    def slow_list(self):
        found = [*listed(self)]
        if ends[0].exists():
            ends[0].rename(ends[1])
        return iter(found)

    monkeypatch.setattr(DirectoryStore, "list", slow_list)
    contents = Shelf.at(str(store)).contents()
    there = set(CHAIN) if meanwhile == "made" else set(CHAIN[:2])
    assert (set(contents.manifests), contents.broken) == (there, {})
