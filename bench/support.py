"""Where a benchmark ran and what came out: one JSON file for each run.

A figure without the machine, the commit and the command that made it is worth nothing, so no
benchmark writes a file except through `write_result`.  The raw price of a 4 KB fdatasync on the
same disk goes into every file: it changes by the hour on shared machines, and decides most others.
So does what one Python call costs at once and after a pause: on a machine whose caches are shared
with others the pause makes it up to twenty times as dear, and whatever does little at a time slow.
"""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from meterd.protocol.envelope import RequestHeader, decode_request_header, encode_request

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "bench" / "results"
PACKAGES = ("numpy", "numba", "pyzmq", "msgpack", "lz4", "crc32c", "psycopg")
SYNC_SIZE = 4096
SYNC_FILE_SIZE = 1024 * SYNC_SIZE
SYNC_COUNT = 500
PAUSES_MS = (0, 1, 5)
CALL_COUNT = 100
LOAD_BEFORE = os.getloadavg()  # of others: a busy machine makes every figure worthless


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """The commit of the checkout, with a plus where files differ from it."""
    git = ["git", "-C", str(CHECKOUT)]
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def fdatasync_us(directory: Path, count: int = SYNC_COUNT) -> dict[str, float]:
    """Median and 99th percentile of writing 4 KB into a file that is already there, durably."""
    path = directory / "fdatasync.probe"
    with path.open("wb+", buffering=0) as file:
        file.write(bytes(SYNC_FILE_SIZE))
        os.fsync(file.fileno())
        page, taken = os.urandom(SYNC_SIZE), []
        for number in range(count):
            begin = time.perf_counter_ns()
            os.pwrite(file.fileno(), page, number * SYNC_SIZE % SYNC_FILE_SIZE)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter_ns() - begin)
    path.unlink()
    return percentiles_us(taken)


def call_us() -> dict[str, float]:
    """Median cost of decoding a request's header, after so many ms in which nothing else is done.

    The processor is kept busy meanwhile, so it is neither asleep nor slower after a pause.
    """
    header, _ = encode_request(RequestHeader(1, "ingest"), b"")
    found = {}
    for pause in PAUSES_MS:
        taken = []
        for _ in range(CALL_COUNT):
            until = time.perf_counter_ns() + pause * 1_000_000
            while time.perf_counter_ns() < until:
                pass
            begin = time.perf_counter_ns()
            decode_request_header(header)
            taken.append(time.perf_counter_ns() - begin)
        found[f"after_{pause}_ms"] = percentiles_us(taken)["p50"]
    return found


def percentiles_us(nanoseconds: list[int]) -> dict[str, float]:
    """Median and 99th percentile in microseconds, by nearest rank."""
    ranked = sorted(nanoseconds)
    if not ranked:
        return {}
    ranks = {"p50": 0.5, "p99": 0.99}
    return {
        name: round(ranked[min(len(ranked) - 1, int(len(ranked) * share))] / 1000, 1)
        for name, share in ranks.items()
    }


def directory_size(directory: Path) -> int:
    """Bytes that the files below a directory take on disk (allocated, not apparent).

    Without a node's ballast, which holds nothing.
    """
    total = 0
    for path in directory.rglob("*"):
        try:
            if path.name == "ballast":
                continue
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def write_result(name: str, document: dict[str, Any]) -> Path:
    """Keep a run as bench/results/<name>-<time>.json; returns the path."""
    now = datetime.now(UTC)
    whole = {
        "benchmark": name,
        "command": " ".join([Path(sys.executable).name, "-m", *module_command()]),
        "commit": commit(),
        "time": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average_before": LOAD_BEFORE,
        "call_us": call_us(),
        "versions": versions(),
        **document,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return path


def module_command() -> list[str]:
    """How this program was started, without the paths of the machine."""
    program = Path(sys.argv[0])
    return [f"{program.parent.name}.{program.stem}", *sys.argv[1:]]


def say(text: str) -> None:
    """Tell whoever watches how it goes."""
    print(text, file=sys.stderr, flush=True)
