"""What the log of a node had of a partition that it has adopted since is given to nobody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from meterd.actors.adopting import adopt, loaded
from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_log import Entry, Log
from meterd.actors.log.wal_recovery import Owner, Recovery
from meterd.actors.log.wal_spare import Spare
from meterd.actors.options import Limits
from meterd.actors.replicating.op_reader import Asked, OpReader
from meterd.actors.starting import identity, peer_copy, start_checks
from meterd.actors.starting.identity import Identity
from meterd.core.log.op_places import OpPlace
from meterd.core.raft.events import ReadOps
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.log_format import GROUP_COUNT, META_GROUP
from tests.support import replica
from tests.support.pipeline import Pipeline
from tests.unit.test_log_mending import WHO
from tests.unit.test_replayed_backup import KEY, NOW, batch, committed_of

FILE_SIZE = 1 << 20


def say(_: str) -> None:
    """Nobody listens."""


def write(directory: Path, who: Identity, pipeline: Pipeline) -> None:
    directory.mkdir()
    disk, spare = LocalDisk(), Spare(LocalDisk(), str(directory), FILE_SIZE)
    owner = Owner(who.node_id, who.cluster_id, who.identity_key)
    log = Log(disk, str(directory), spare, owner, lambda: NOW)
    log.open(None)
    for one in pipeline.appended:
        log.append([Entry(one.sequence, one.head, one.payload)])
    log.close()
    identity.write(str(directory), who)


def begun() -> Pipeline:
    pipeline = Pipeline(KEY)
    pipeline.put(NOW, {"code": "m", "aggregation": "sum"})
    pipeline.events(NOW, batch("first"))
    return pipeline


def load_both(
    own_dir: Path, mine: Pipeline, theirs: Pipeline
) -> tuple[loaded.Loaded, loaded.Loaded]:
    """Return a directory with a log, and a copy of a peer's in it, without any checkpoint."""
    write(own_dir, WHO, mine)
    write(own_dir / "incoming", replace(WHO, node_id=8), theirs)
    peer_copy.write_copied(str(own_dir / "incoming"), {8})
    own = loaded.load(str(own_dir), WHO, 7, Limits(), say)
    return own, loaded.load(str(own_dir / "incoming"), WHO, 8, Limits(), say)


def committed_by(pipeline: Pipeline) -> NDArray[np.uint64]:
    applied = np.zeros(GROUP_COUNT, np.uint64)
    for group, index in committed_of(pipeline).items():
        applied[group] = index
    return applied


def test_rows_are_not_taken_whose_metrics_only_the_log_knows(tmp_path: Path) -> None:
    """The own log has the meta group as far as the peer's, so that is not adopted."""
    mine, theirs = begun(), begun()
    theirs.events(NOW, batch("two"))
    own, donor = load_both(tmp_path / "own", mine, theirs)
    loaded.bring_up(donor, committed_by(theirs))
    taken = adopt.adoptable(own, donor, np.arange(GROUP_COUNT) < PARTITION_COUNT)
    assert taken.any()
    assert not taken[META_GROUP]
    assert not adopt.knows_metrics(own, donor, taken)
    own.replayer.state.registry = donor.replayer.state.registry
    assert adopt.knows_metrics(own, donor, taken)


def test_ops_that_were_never_committed_are_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Op 2 of its own died with its leader; the peer's log goes on with another one."""
    monkeypatch.setattr(replica, "TERM", 1)
    mine, theirs = begun(), begun()
    mine.events(NOW, batch("dead"))
    monkeypatch.setattr(replica, "TERM", 2)
    theirs.put(NOW, {"code": "m2", "aggregation": "sum"})
    for name in ("two", "three", "four"):
        theirs.events(NOW, batch(name))
    own_dir = tmp_path / "own"
    own, donor = load_both(own_dir, mine, theirs)
    applied = committed_by(theirs)
    loaded.bring_up(donor, applied)
    wanted = np.zeros(GROUP_COUNT, np.bool_)
    wanted[:PARTITION_COUNT] = True
    taken = adopt.adoptable(own, donor, wanted)
    target = peer_copy.begin_adopted(str(own_dir))
    done = adopt.adopt(own, donor, taken, WHO, FILE_SIZE, target, say)
    peer_copy.complete_adopted(str(own_dir), done.names)
    assert peer_copy.finish(str(own_dir))
    start = start_checks.check_checkpoints(LocalDisk(), str(own_dir))
    owner = Owner.of(WHO, str(own_dir))
    end = Recovery(LocalDisk(), str(own_dir), owner, start, say, WHO, mends=True).run()
    assert end is not None
    reader = OpReader(str(own_dir), void=end.groups.packed()["void"])
    try:
        group = next(g for g in np.flatnonzero(taken).tolist() if applied[g] == 4)
        place = OpPlace(end.file_number, end.place.offset)
        found = [reader.read(Asked(ReadOps(group, 9, 5, n, 4), place)) for n in (1, 2, 3)]
        assert found == [None, None, None]
    finally:
        reader.close()
