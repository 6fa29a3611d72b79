"""Handles: what a kernel sees behind one is the arrays that it was made of, all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from meterd.core.kernels import apply, tables
from meterd.core.kernels.apply import MetricTable, Scratch, make_scratch
from meterd.core.kernels.memory import handle_of
from meterd.core.kernels.tables import Capacity, Tables, make_tables

TABLES = make_tables(Capacity(100, 100, 100, 100, 100), (1, 2))
SCRATCH = make_scratch(100)
METRICS = MetricTable(
    np.zeros((3, 8), np.int64),
    np.zeros(3, np.uint64),
    np.zeros(5, np.uint8),
    np.zeros((2, 2), np.int64),
    np.zeros(7, np.int64),
)


def viewer(view: Any, fields: tuple[str, ...]) -> Any:
    """Return a kernel that says where each array lies, its shape, and how large its items are."""
    items = ", ".join(f"(v.{f}.ctypes.data, v.{f}.shape, v.{f}.itemsize)" for f in fields)
    names: dict[str, Any] = {"view": view}
    exec(f"def look(handle):\n    v = view(handle)\n    return ({items},)", names)
    return njit(names["look"])


@pytest.mark.parametrize(
    ("arrays", "view"),
    [
        (TABLES, tables.tables_at),
        (SCRATCH, apply._scratch_at),
        (METRICS, apply._metrics_at),
    ],
)
def test_a_kernel_sees_what_the_handle_was_made_of(
    arrays: Tables | Scratch | MetricTable, view: Any
) -> None:
    names: list[str] = []
    wanted: list[Any] = []
    for field, array in zip(arrays._fields, arrays, strict=True):
        inner = array._asdict() if isinstance(array, tuple) else {"": array}
        for name, part in inner.items():
            names.append(f"{field}.{name}".rstrip("."))
            wanted.append((part.ctypes.data, part.shape, part.itemsize))
    handle = handle_of(arrays)
    assert len(handle) == len(names)
    assert list(viewer(view, tuple(names))(handle)) == wanted
