"""A million events that look like life, through `meterctl ingest`, against the plain-Python model.

`python -m bench.million [EVENTS]`: every account's total of every metric over four ranges, and the
groups, filters and series of the busiest and of many other accounts must be equal.  Exits 1 if one
is not.
"""

import sys
import tempfile
import time
from pathlib import Path

from bench.support import write_result
from tests.support.generator import Generator
from tests.support.node import Node
from tests.support.totals_check import check

SEED = 20_261_121


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home, Node() as node:
        generator = Generator(SEED, time.time_ns())
        report = check(f"127.0.0.1:{node.port}", generator, count, Path(home) / "events.ndjson")
    result = {
        "events": count,
        "seed": SEED,
        "ingest": report.statuses,
        "comparisons": dict(report.comparisons),
        "mismatches": report.mismatches,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(write_result("million", result))
    for line in report.mismatches:
        print(line)
    sys.exit(1 if report.mismatches else 0)


if __name__ == "__main__":
    main()
