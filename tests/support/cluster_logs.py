"""Compares the logs that nodes have written: one history for each group, whoever wrote it down.

The nodes are stopped.  What a node's log holds of a group is the newest version of each op; the
digest of an op covers all before it, so two nodes agree where their digests do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from meterd.core.kernels import scan, segment_rows
from meterd.core.log.op_places import NOT_HERE
from meterd.protocol import log_format
from meterd.protocol.log_format import ACTIVE_NAME, FILE_HEADER_SIZE, SLICE, number_of

REPAIR = 2
# group → index → (term, digest)
Ops = dict[int, dict[int, tuple[int, bytes]]]


def read_ops(data_dir: Path) -> Ops:
    """Return all ops of a node's log."""
    numbered = sorted(path for path in data_dir.glob("wal-*.log") if number_of(path.name))
    found: Ops = {}
    for path in [*numbered, data_dir / ACTIVE_NAME]:
        data = np.fromfile(path, np.uint8)
        state = np.zeros(5, np.int64)
        state[scan.BLOCK_END] = FILE_HEADER_SIZE
        records = np.empty((len(data) // log_format.RECORD_HEADER_SIZE + 1, 3), np.int64)
        count = int(segment_rows.list_records(data, len(data), state, records))
        assert count >= 0, f"{path} is no log"
        for offset in records[:count, 0].tolist():
            slices = int(data[offset + 12 : offset + 16].view(np.uint32)[0])
            at = offset + log_format.RECORD_HEADER_SIZE
            table = data[at : at + slices * log_format.SLICE_SIZE].view(SLICE)
            for row in table[table["flags"] & NOT_HERE == 0]:
                ops = found.setdefault(int(row["partition"]), {})
                if row["flags"] & REPAIR:
                    ops.setdefault(int(row["index"]), (int(row["term"]), row["digest"].tobytes()))
                else:
                    _append(ops, row)
    return found


def _append(ops: dict[int, tuple[int, bytes]], row: np.void) -> None:
    """An op replaces all that its group has from its index on."""
    index = int(row["index"])
    later = index
    while later in ops:
        del ops[later]
        later += 1
    ops[index] = int(row["term"]), row["digest"].tobytes()


def disagreements(logs: dict[int, Ops]) -> list[str]:
    """Return where two nodes' logs do not have one history; empty when all do.

    A log that begins behind the op that is looked at says nothing of it.
    """
    found = []
    groups = {group for ops in logs.values() for group in ops}
    for group in sorted(groups):
        have = {node: ops[group] for node, ops in logs.items() if ops.get(group)}
        last = min(max(ops) for ops in have.values())
        said = {node: ops.get(last) for node, ops in have.items() if min(ops) <= last}
        if len(set(said.values())) > 1:
            found.append(f"group {group}, index {last}: {said}")
    return found
