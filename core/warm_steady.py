"""Runs the kernels of the engine's fast path once: a node alone (`core/warm.py`) uses few."""

from __future__ import annotations

from typing import Any

import numpy as np

from meterd.core.kernels import pulse, steady
from meterd.core.kernels.steady import MEMBERS_MAX


def warm_steady() -> None:
    """Compile or load what leaders and followers need; of a group that nobody leads."""
    columns, flags = np.zeros((steady.COLUMNS, 1), np.int64), np.zeros((3, 1), np.bool_)
    digests = np.zeros((1, 2), np.uint64)
    numbers = np.zeros((3, 1, MEMBERS_MAX), np.int64)
    masks = np.zeros((2, 1, MEMBERS_MAX), np.bool_)
    state = columns, flags, numbers, masks
    groups, size, fast = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.bool_)
    place, digest = np.zeros((5, 1), np.int64), np.zeros((1, 2), np.uint64)
    found, told = np.zeros((2, 1), np.int64), np.zeros((6, 1), np.int64)
    steady.may_append(*state, groups, size, 0, fast)
    steady.places(columns, digests, groups, place, digest)
    steady.append(columns, digests, groups, place, digest, -1)
    steady.streaming(numbers, masks, groups, np.zeros(MEMBERS_MAX, np.int64))
    steady.take_acks(0, *state, place, groups, found)
    ops = groups, place[0], place[1], digest
    before = digest.copy(), place[2], place[3]
    said = np.zeros((3, 1), np.int64)
    steady.accept(0, columns, flags, digests, said, digest, ops, before, fast, found)
    steady.note_durable(columns, flags, groups, place[0], place[4], size)
    steady.count_durable(*state, groups, found, told)
    steady.rows_of(groups, np.zeros(1, np.int64))
    steady.any_counts(columns, flags, groups, place[4])
    steady.raise_to(np.zeros(1, np.int64), size, groups, place[0], found)
    _warm_pulse(*state)


def _warm_pulse(columns: Any, flags: Any, numbers: Any, masks: Any) -> None:
    times, marks = np.zeros((pulse.TIMES, 1), np.int64), np.zeros((2, 1), np.bool_)
    rounds = np.zeros((3, 1, MEMBERS_MAX), np.int64)
    three, seven = np.zeros((3, 1), np.int64), np.zeros((7, 1), np.int64)
    there, left = np.zeros(1, np.bool_), np.zeros(1, np.int64)
    pulse.each_once(three[0], 1)
    pulse.earliest(times)
    pulse.all_have_all(columns, flags, numbers)
    pulse.beats_for(1, columns, flags, numbers, three)
    pulse.take_beats(1, 0, columns, flags, times, three, seven.T.copy(), there, three[:2].copy())
    said, own = (0, 0, 0, 0), (times, marks, rounds)
    pulse.take_answers(1, said, columns, flags, numbers, masks, *own, seven, left)
    pulse.leases(0, pulse.NEVER, columns, flags, masks, times, rounds, three)
    pulse.tick((*said, 1), True, columns, flags, masks, *own, left)
