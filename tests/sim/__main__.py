"""python -m tests.sim: seeds of the engine alone.  See docs/REPLICATION.md, "Simulation"."""

from __future__ import annotations

import sys

from tests.sim import seeds
from tests.sim.plan import FAULTS
from tests.sim.runner import run_fast, run_seed

LAYER = seeds.Layer(
    program="tests.sim",
    run=run_seed,
    seeds=200,
    twice=100,
    faults=FAULTS,
    operations=(
        "write",
        "lease read",
        "round read",
        "election",
        "transfer",
        "membership",
        "snapshot",
        "install",
    ),
    medians=("crash", "election", "write"),
)


def main() -> int:
    parser = seeds.parser(LAYER)
    parser.add_argument("--fast", action="store_true", help="nodes with the fast path")
    arguments = parser.parse_args()
    return seeds.main(LAYER._replace(run=run_fast) if arguments.fast else LAYER, arguments)


if __name__ == "__main__":
    sys.exit(main())
