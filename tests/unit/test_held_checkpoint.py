"""Checkpoints that are kept for copies: one of them is always whole, and old enough."""

from __future__ import annotations

import os
import time
from pathlib import Path

from meterd.actors.keeping import held_checkpoint
from meterd.actors.keeping.held_checkpoint import CHECKPOINT, IN_TURN, PREFIX
from meterd.core.housekeeping import inventory
from meterd.protocol import checkpoint_format
from tests.unit.test_checkpoints import BATCH, Node

PERIOD = 100.0


def whole(directory: Path, prefix: str) -> int | None:
    """The number of a kept checkpoint; all files that it names are there."""
    path = directory / (prefix + CHECKPOINT)
    if not path.exists():
        return None
    state = checkpoint_format.read_state(path.read_bytes())
    names = {prefix + name for name in inventory.identity_files(state)} | {path.name}
    assert {p.name for p in directory.iterdir() if p.name.startswith(prefix)} == names
    return state["number"]


def kept(directory: Path) -> list[int | None]:
    return [whole(directory, prefix) for prefix in IN_TURN]


def test_two_checkpoints_are_kept_in_turn(tmp_path):
    node, now = Node(tmp_path, flush_at=4 * BATCH), time.time()
    held_checkpoint.renew(str(tmp_path), now, PERIOD)
    assert kept(tmp_path) == [None, None]
    seen = []
    for number in range(1, 40):
        node.add(number)
        node.save(number)
        os.utime(tmp_path / CHECKPOINT, (now, now))
        held_checkpoint.renew(str(tmp_path), now, PERIOD)
        seen.append(sorted(one or 0 for one in kept(tmp_path)))
        now += PERIOD / 5
    # Whenever a copy begins, what is the newer one then is there for a period from then on.
    for begin, (_, newer) in enumerate(seen[:-5]):
        assert all(newer in later for later in seen[begin : begin + 5])
    assert seen[-1][1] >= 35


def test_nothing_is_renewed_while_the_checkpoint_stays(tmp_path):
    node, now = Node(tmp_path), time.time()
    node.add(1)
    node.save(1)
    for later in (0.0, 2 * PERIOD, 4 * PERIOD):
        held_checkpoint.renew(str(tmp_path), now + later, PERIOD)
    assert kept(tmp_path) == [1, None]


def test_a_hold_is_apart_from_those_in_turn(tmp_path):
    node = Node(tmp_path)
    node.add(1)
    node.save(1)
    held_checkpoint.renew(str(tmp_path), time.time(), PERIOD)
    held_checkpoint.hold(str(tmp_path))
    node.add(2)
    node.save(2)
    assert (whole(tmp_path, PREFIX), kept(tmp_path)) == (1, [1, None])
    held_checkpoint.release(str(tmp_path), PREFIX)
    assert (whole(tmp_path, PREFIX), kept(tmp_path)) == (None, [1, None])
    held_checkpoint.release(str(tmp_path), *IN_TURN)
    assert not list(tmp_path.glob("held*"))
