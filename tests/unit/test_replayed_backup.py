"""A replay of a backup counts what was committed at the cut, and nothing behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meterd.actors.backups import restoring
from meterd.actors.backups.replaying import Replayed, replay_directory
from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_log import Entry, Log
from meterd.actors.log.wal_spare import Spare
from meterd.actors.starting import identity
from meterd.core.questions.partition_sets import partition
from meterd.protocol import log_format
from meterd.protocol.log_format import META_GROUP
from tests.support.log_life import OWNER
from tests.support.pipeline import Pipeline
from tests.unit.test_log_mending import WHO

NOW = 1_800_000_000_000_000_000
KEY = (
    int.from_bytes(OWNER.identity_key[:8], "little"),
    int.from_bytes(OWNER.identity_key[8:], "little"),
)
ACCOUNTS = [f"account-{n}" for n in range(40)]


def batch(name: str, accounts: Sequence[str] = ACCOUNTS) -> list[dict[str, Any]]:
    return [{"account": a, "metric": "m", "id": f"{name}-{a}", "timestamp": NOW} for a in accounts]


def committed_of(pipeline: Pipeline) -> dict[int, int]:
    """Return the last index of each group."""
    groups = pipeline._follower
    return {int(group): int(groups.index[group]) for group in np.flatnonzero(groups.index)}


class Logged:
    """A log with a metric, events that were committed, and a tail that was not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        pipeline = Pipeline(KEY)
        pipeline.put(NOW, {"code": "m", "aggregation": "sum"})
        pipeline.events(NOW, batch("first"), batch("second"))
        self.committed = committed_of(pipeline)
        pipeline.events(NOW, batch("tail"))
        self.whole = committed_of(pipeline)
        disk = LocalDisk()
        log = Log(disk, str(directory), Spare(disk, str(directory), 1 << 20), OWNER, lambda: NOW)
        log.open(None)
        for append in pipeline.appended:
            log.append([Entry(append.sequence, append.head, append.payload)])
        self.last = pipeline.appended[-1].sequence
        log.close()
        identity.write(str(directory), WHO)

    def replayed(self, committed: dict[int, int] | None) -> Replayed:
        names = [log_format.ACTIVE_NAME]
        return replay_directory(str(self.directory), names, lambda _: None, committed)


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    return Logged(tmp_path)


def counted(found: Replayed) -> int:
    return sum(count for count, _ in found.totals.values())


def applied(found: Replayed) -> dict[int, int]:
    groups = found.groups.packed()["groups"]
    return {group: index for group, (_, index, _) in groups.items()}


def test_the_tail_counts_for_nothing(logged: Logged) -> None:
    found = logged.replayed(logged.committed)
    assert (found.events, counted(found)) == (80, 80)
    assert applied(found) == logged.committed
    assert found.sequence == logged.last  # it is there, and checked
    everything = logged.replayed(None)
    assert (everything.events, counted(everything)) == (120, 120)
    assert applied(everything) == logged.whole


def test_a_partition_of_which_nothing_is_committed_has_nothing(logged: Logged) -> None:
    """Each partition ends where it does, whatever others have; nothing waits for anything."""
    some = {g: i for g, i in logged.committed.items() if g % 2 == 0 or g == META_GROUP}
    found = logged.replayed(some)
    assert applied(found) == some
    expected = sum(partition(a) in some for a in ACCOUNTS)
    assert found.events == counted(found) == 2 * expected


def test_without_the_metric_nothing_can_be_counted(logged: Logged) -> None:
    """Events wait for the registry that they were made under."""
    some = {g: i for g, i in logged.committed.items() if g != META_GROUP}
    found = logged.replayed(some)
    assert (found.events, counted(found), applied(found)) == (0, 0, {})


def test_no_node_is_started_alone_on_a_member_of_a_cluster(logged: Logged, tmp_path: Path) -> None:
    """It would wait for the others for ever."""
    assert not restoring.is_alone(str(logged.directory))
    identity.write(str(logged.directory), replace(WHO, first_members=()))
    assert restoring.is_alone(str(logged.directory))
