"""Identities that are lost are worked out again: exactly those there were."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd import admin
from meterd.actors.checking import identity_rebuild
from meterd.actors.housekeeping.segment_merger import SegmentMerger
from meterd.actors.keeping import identity_store
from meterd.actors.starting import identity
from meterd.core.state.erasures import Erasures, erasure_command, erasure_of
from meterd.core.state.identity_rebuild import IdentityRebuild, rows_of_record
from meterd.core.state.machine import DAY_NS
from meterd.protocol import checkpoint_format, log_format
from meterd.protocol.errors import Corrupt, InvariantViolation, NotNeeded
from meterd.protocol.segment_format import SegmentName
from tests.support.identities import entries_of
from tests.support.pipeline import KEY, Pipeline
from tests.support.stored_directory import FOLDER, open_archive

NOW = 20_000 * DAY_NS
BATCH = 3_000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stored")
    open_archive(FOLDER, home)
    return home / "data"


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(original, tmp_path / "data"))
    (copy / "checkpoint.prev.bin").rename(tmp_path / "prev")  # a start would fall back to it
    return copy


def state_of(directory: Path, name: str = "checkpoint.bin") -> dict[str, Any]:
    return checkpoint_format.read_state((directory / name).read_bytes())


def identities(directory: Path) -> list[tuple[int, int]]:
    """All that the newest checkpoint names, sorted."""
    opened = identity_store.open_named(directory, state_of(directory))
    rows = np.concatenate([*(entries_of(one.run) for one in opened.runs), *opened.entries])
    return sorted(map(tuple, rows.tolist()))


def names(directory: Path) -> list[str]:
    state = state_of(directory)
    return [file[0] for kind in ("runs", "parts") for file in state[kind]]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4_100] ^= 1
    path.write_bytes(content)


def rebuild(directory: Path) -> identity_rebuild.Rebuilt:
    return identity_rebuild.rebuild(str(directory), lambda _: None, BATCH)


@pytest.mark.parametrize("harm", [damage, Path.unlink])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_whichever_file_is_lost_the_same_identities_come_back(directory, place, harm):
    wanted, lost = identities(directory), names(directory)[place]
    kept = {name: (directory / name).read_bytes() for name in names(directory) if name != lost}
    harm(directory / lost)
    before = {path.name for path in directory.iterdir()}
    done = rebuild(directory)
    assert identities(directory) == wanted
    assert done.identities == done.named == len(wanted)
    assert not done.lacks_erased
    assert Path(done.damage.path).name == lost
    added = {*done.files, "checkpoint.prev.bin"}
    prepared = {"checkpoint.bin.spare"}  # space for a checkpoint, which was used
    assert {path.name for path in directory.iterdir()} == (before | added) - prepared
    assert not before & set(done.files) and lost not in done.files
    assert all((directory / name).read_bytes() == data for name, data in kept.items())
    with pytest.raises(NotNeeded):
        rebuild(directory)


def test_identities_of_rows_that_were_left_out_do_not_come_back_and_that_is_said(directory):
    name, key = SegmentName(1, 1), identity.read(str(directory)).identity_key
    words = np.frombuffer(key, np.uint64).copy()
    command, partition = erasure_command(words, "acme", True, "one")
    erasures = Erasures([erasure_of(command, partition, 1 << 40, 0)], words)
    merged = SegmentMerger(str(directory)).merge([name], erasures, lambda done, moved: None)
    assert merged.erased > 0
    wanted = identities(directory)
    (directory / names(directory)[0]).unlink()
    done = rebuild(directory)
    assert done.lacks_erased
    assert done.identities == len(wanted) - merged.erased
    assert set(identities(directory)) < set(wanted)


def test_the_one_before_counts_when_the_newest_checkpoint_is_damaged(directory):
    (directory.parent / "prev").rename(directory / "checkpoint.prev.bin")
    state = state_of(directory, "checkpoint.prev.bin")
    damage_at_the_end = bytearray((directory / "checkpoint.bin").read_bytes())
    damage_at_the_end[30] ^= 1
    (directory / "checkpoint.bin").write_bytes(damage_at_the_end)
    for kind in ("runs", "parts"):
        for file in state[kind]:
            (directory / file[0]).unlink()
    done = rebuild(directory)
    assert done.checkpoint == "checkpoint.prev.bin"
    assert state_of(directory)["log"] == state["log"]
    assert len(identities(directory)) == sum(
        count for kind in ("runs", "parts") for _, _, count in state[kind]
    )


def test_nothing_is_rebuilt_without_a_checkpoint_or_with_a_gap(directory):
    (directory / names(directory)[0]).unlink()
    segment = directory / "seg-000000000002-000000000002.seg"
    content = segment.read_bytes()
    segment.write_bytes(content[:-1])
    before = (directory / "checkpoint.bin").read_bytes()
    (directory / "wal-00000000000000000002.log").unlink()
    with pytest.raises(Corrupt, match="seg-000000000002"):
        rebuild(directory)
    assert (directory / "checkpoint.bin").read_bytes() == before
    (directory / "checkpoint.bin").write_bytes(b"nothing")
    with pytest.raises(Corrupt, match=r"checkpoint\.bin"):
        rebuild(directory)


def test_it_is_done_only_when_asked_for_and_confirmed(directory, capsys):
    (directory / names(directory)[0]).unlink()
    ask = ["fsck", "--data-dir", str(directory), "--rebuild-identities"]
    assert admin.run("meterctl", ask) == 6
    assert "--yes" in capsys.readouterr().err
    assert admin.run("meterctl", [*ask, "--yes"]) == 0
    assert '"identities": ' in capsys.readouterr().out
    assert admin.run("meterctl", [*ask, "--yes"]) == 6
    assert admin.run("meterctl", ["fsck", "--data-dir", str(directory), "--level", "full"]) == 0


event = st.builds(
    dict,
    account=st.sampled_from(["a", "b/c", "x" * 100]),
    id=st.sampled_from([*"abcdef", "00000000-0000-7000-8000-000000000001"]),
    metric=st.sampled_from(["sum", "unique"]),
    value=st.integers(0, 2),
    timestamp=st.integers(-5, 1).map(lambda day: NOW + day * DAY_NS),
    properties=st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["", "v"])),
    operation=st.sampled_from(["none", "add", "remove"]),
)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.lists(event, min_size=1, max_size=12), st.integers(-6, 0)), max_size=8),
    st.integers(-6, 0),
)
def test_events_of_records_give_the_identities_that_the_machine_has(batches, last_horizon):
    """Duplicates, conflicts, refused events and identities used again after they expired."""
    pipeline = Pipeline()
    pipeline.put(NOW, {"code": "sum", "aggregation": "sum"})
    pipeline.put(NOW, {"code": "unique", "aggregation": "unique", "unique_on": "k"})
    outcomes: dict[int, np.ndarray] = {}
    apply_events = pipeline.state.apply_events

    def noted(record: log_format.Record) -> np.ndarray:
        outcome = apply_events(record)
        outcomes[record.sequence] = outcome.copy()
        return outcome

    pipeline.state.apply_events = noted  # type: ignore[method-assign]
    for step, (events, horizon) in enumerate(batches):
        now = NOW + step + 1
        pipeline.command(now, op="expire", horizon=NOW + horizon * DAY_NS, future_ns=DAY_NS)
        pipeline.events(now, [one | {"value": str(one["value"])} for one in events])
    horizon = NOW + last_horizon * DAY_NS
    pipeline.command(NOW + 100, op="expire", horizon=horizon, future_ns=DAY_NS)
    state = pipeline.state
    work = IdentityRebuild(KEY, state.registry, state.leader_time, state.horizon, 100)
    for append in pipeline.appended:
        record = log_format.parse_frames(append.head, bytes(append.payload))
        if record.kind == log_format.EVENTS:
            work.take(rows_of_record(record, outcomes[record.sequence] == 0))
    assert set(map(tuple, work.take_entries().tolist())) == _living(state)
    assert work.count == 0


def _living(state: Any) -> set[tuple[int, int]]:
    rows = state.tables.journal[: state.recent].tolist()
    day = state.horizon // DAY_NS
    return {(word, rest) for word, rest in rows if rest & 0xFFFF >= day}


def test_rows_that_contradict_each_other_are_refused():
    """Who gives one that was not stored would be told so."""
    pipeline = Pipeline()
    pipeline.put(NOW, {"code": "sum", "aggregation": "sum"})
    same = {"account": "a", "id": "1", "metric": "sum", "value": "1", "timestamp": NOW}
    pipeline.events(NOW + 1, [same, same])
    record = log_format.parse_frames(pipeline.appended[-1].head, pipeline.appended[-1].payload)
    work = IdentityRebuild(KEY, pipeline.state.registry, NOW, pipeline.state.horizon, 100)
    with pytest.raises(InvariantViolation):
        work.take(rows_of_record(record, np.ones(2, np.bool_)))
