"""python -m tests.sim.core: seeds of the second layer.  See docs/REPLICATION.md, "Simulation"."""

from __future__ import annotations

import sys

from tests.sim import seeds
from tests.sim.core_world import FAULTS_OF_CORE, run_core
from tests.sim.tally import Page

PAGE = Page(
    program="tests.sim.core",
    faults=FAULTS_OF_CORE,
    operations=(
        "write",
        "lease read",
        "round read",
        "metric",
        "expire",
        "election",
        "transfer",
        "membership",
        "checkpoint",
    ),
    medians=("crash", "leader change", "events", "checkpoint", "read from disk"),
)
LAYER = seeds.Layer(PAGE, run_core, seeds=20, at_once=10, twice=50)

if __name__ == "__main__":
    sys.exit(seeds.main(LAYER, seeds.parser(LAYER).parse_args()))
