"""python -m tests.sim: seeds of the engine alone.  See docs/REPLICATION.md, "Simulation"."""

from __future__ import annotations

import sys

from tests.sim import seeds
from tests.sim.plan import FAULTS
from tests.sim.runner import run_fast, run_seed
from tests.sim.tally import Page

PAGE = Page(
    program="tests.sim",
    faults=tuple(FAULTS),
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
LAYER = seeds.Layer(PAGE, run_seed, seeds=200, at_once=50, twice=100)
# The same with the fast path.
FAST = LAYER._replace(page=PAGE._replace(program="tests.sim --fast"), run=run_fast)


def main() -> int:
    parser = seeds.parser(LAYER)
    parser.add_argument("--fast", action="store_true", help="nodes with the fast path")
    arguments = parser.parse_args()
    return seeds.main(FAST if arguments.fast else LAYER, arguments)


if __name__ == "__main__":
    sys.exit(main())
