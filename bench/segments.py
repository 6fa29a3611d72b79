"""What segments cost in processor time: `python -m bench.segments [--against CHECKOUT]`.

Full log files are written from the events of `bench.storage` (as many to a file and account as
there), a segment is made of each, and all are merged into one, by the product's own code.  Measured
is the processor time of the process, not the time that passes, because disk and machine are shared.
With `--against` another checkout's code does the same with the same files, in turns, each time in a
new process, and the quotient of the medians is told.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.storage import Block, Events
from bench.support import say, write_result
from meterd.actors.housekeeping.segment_making import SegmentMaker
from meterd.actors.housekeeping.segment_merger import SegmentMerger
from meterd.core.kernels.hashing import partition_of
from meterd.protocol import log_format
from meterd.protocol.log_format import EVENTS, SLICE, BlockHeader, FileHeader, RecordFields
from meterd.protocol.segment_format import SUFFIXES, SegmentName

KEY = bytes(range(16))
DENSITY = 50_000_000  # events of the 89 days from whose beginning these are taken
TURNS = 5
WARM_ROWS = 20_000
HEAP = np.dtype([("account_size", "u1"), ("id_size", "u1"), ("account", "S14"), ("id", "16u1"),
                 ("properties", "u1"), ("host_key", "S6"), ("host", "S7"), ("plan_key", "S6"),
                 ("plan", "S7"), ("region_key", "S8"), ("region", "S7")])  # fmt: skip


def payload_of(events: Events, block: Block) -> tuple[bytes, int]:
    """The payload of a record, and how large its heap is."""
    n = len(block.value)
    heap = np.zeros(n, HEAP)
    heap["account_size"], heap["properties"] = 14, 3
    heap["account"], heap["id"] = events.names[block.account].astype("S14"), block.id
    region, plan, host = block.dimensions
    for name, values in (("host", host), ("plan", plan), ("region", region)):
        heap[f"{name}_key"] = bytes([len(name)]) + name.encode() + b"\x07"
        heap[name] = np.array([b"value-%d" % value for value in range(8)])[values]
    parts = [
        block.timestamp.astype("<i8").tobytes(),
        block.value.astype("<i8").tobytes(),
        ((1 + np.arange(n)) * HEAP.itemsize).astype("<u4").tobytes(),
        (1 + block.metric).astype("<u2").tobytes(),
        bytes(n),
        heap.tobytes(),
    ]
    return b"".join(part + bytes(-len(part) % 8) for part in parts), len(parts[-1])


class LogWriter:
    """Writes full log files with one record a block."""

    def __init__(self, directory: Path, events: Events) -> None:
        self._directory, self._events = directory, events
        names = [np.frombuffer(name.encode(), np.uint8) for name in events.names.tolist()]
        self._partition = np.array([partition_of(name, 0, len(name)) for name in names])
        self._next_index = np.ones(256, np.int64)
        self._seq, self._crc, self._next_block = 1, 0, 0

    def write(self, number: int, rows: int) -> None:
        """Write a full log file of about so many rows."""
        header = FileHeader(1, bytes(16), KEY, number, self._seq, 0, self._crc)
        data = bytearray(log_format.encode_file_header(header))
        _, crc = log_format.parse_file_header(bytes(data))
        row = 0
        while row < rows:
            block = self._events.block(self._next_block)
            self._next_block += 1
            count = len(block.value)
            body = self._record(block)
            size = -(-(len(body) + 64) // 512) * 512
            fields = BlockHeader(self._seq, size, 1, count, row, 0, self._crc, 0, number, crc)
            encoded = log_format.encode_block_header(fields)
            self._crc = int.from_bytes(encoded[60:], "little")
            data += encoded + body.ljust(size - 64, b"\0")
            self._seq += 1
            row += count
        (self._directory / log_format.full_name(number)).write_bytes(data)
        (self._directory / f"{number}.rows").write_text(str(row))

    def _record(self, block: Block) -> bytes:
        partition = self._partition[block.account]
        order = np.argsort(partition, kind="stable")
        block = Block(*[column[order] for column in block[:5]], [d[order] for d in block[5]])
        present, counts = np.unique(partition, return_counts=True)
        slices = np.zeros(len(present), SLICE)
        slices["partition"], slices["count"], slices["term"] = present, counts, 1
        slices["index"] = self._next_index[present]
        slices["heap_size"] = counts * HEAP.itemsize
        self._next_index[present] += 1
        payload, heap_size = payload_of(self._events, block)
        fields = RecordFields(EVENTS, len(order), heap_size, 1, self._seq, self._seq)
        return log_format.encode_record_head(fields, slices, payload) + payload


def freely(done: float, moved: int = 0) -> None:
    """A pace that never waits."""


def measured(directory: Path, files: int) -> dict[str, float]:
    """Make and merge; nanoseconds of processor time and bytes an event."""
    maker = SegmentMaker(str(directory), np.frombuffer(KEY, np.uint64).copy())
    numbers = range(1, files + 1)
    rows = {number: int((directory / f"{number}.rows").read_text()) for number in numbers}
    total = sum(rows.values())
    began = time.process_time_ns()
    for number in numbers:
        maker.make(number, bytes(-(-rows[number] // 8)), rows[number], freely)
    made = time.process_time_ns()
    names = [SegmentName(number, number) for number in numbers]
    merged = SegmentMerger(str(directory)).merge(names, None, freely)
    ended = time.process_time_ns()
    assert merged.rows == total
    small = sum((directory / one.file(s)).stat().st_size for one in names for s in SUFFIXES)
    large = sum((directory / merged.name.file(suffix)).stat().st_size for suffix in SUFFIXES)
    for path in directory.glob("seg-*"):
        path.unlink()
    return {
        "make_ns": round((made - began) / total, 1),
        "merge_ns": round((ended - made) / total, 1),
        "made_bytes": round(small / total, 2),
        "merged_bytes": round(large / total, 2),
    }


def in_process(checkout: Path, directory: Path, files: int) -> dict[str, float]:
    """Measure the code of a checkout in a process of its own."""
    command = [sys.executable, "-m", "bench.segments", "--worker", str(directory)]
    done = subprocess.run([*command, "--files", str(files)], cwd=checkout, capture_output=True,
                          check=True, text=True)  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rows", type=int, default=600_000, help="of a file")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        measured(options.worker / "warm", 2)  # kernels are loaded
        print(json.dumps(measured(options.worker, options.files)))
        return
    checkouts = {"this": Path.cwd()} | ({"other": options.against} if options.against else {})
    with tempfile.TemporaryDirectory(dir=options.directory) as path:
        directory = Path(path)
        writer = LogWriter(directory, Events(DENSITY, 1_700_000_000_000_000_000))
        for number in range(1, options.files + 1):
            writer.write(number, options.rows)
        (directory / "warm").mkdir()
        warm = LogWriter(directory / "warm", Events(DENSITY, 1_700_000_000_000_000_000))
        for number in (1, 2):
            warm.write(number, WARM_ROWS)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
        for _ in range(options.turns):
            for name, checkout in checkouts.items():
                found[name].append(in_process(checkout, directory, options.files))
                say(f"{name}: {found[name][-1]}")
    document: dict[str, Any] = {"events": options.files * options.rows, "turns": found}
    document["median"] = median = {
        name: {key: statistics.median(one[key] for one in turns) for key in turns[0]}
        for name, turns in found.items()
    }
    if options.against:
        document["ratio"] = {
            key: round(value / median["other"][key], 3) for key, value in median["this"].items()
        }
    say(f"{document['median']} {document.get('ratio', '')}")
    say(f"wrote {write_result('segments', document)}")


if __name__ == "__main__":
    main()
