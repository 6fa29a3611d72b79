"""Every fault of a disk and every kill, again and again: `python -m bench.faults [--kind KIND]…`.

Each run is drawn from a seed: a history of events, one fault in it, a start, and every answer held
against a plain model: right, or refused with file and offset.  The simulated disk loses what was
not synced in every way a disk may, at any call (`tests.support.simulated_faults`); damage is done
to files that are at rest (`fault_campaign`); real nodes run on real and on failing disks
(`real_faults`), some of which need root.  Exits 1 when there was a violation; what the table says
was run.

With `--progress FILE` every run is noted there, and the same command goes on behind it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random

import click

from bench.fault_table import REAL, SIMULATED, Run, Table
from bench.support import say, write_result
from meterd.actors.node import warm_kernels
from tests.support import fault_campaign, real_faults, real_flips, simulated_faults
from tests.support.fault_book import Violation
from tests.support.fault_campaign import Campaign
from tests.support.simulated_faults import Simulation
from tests.support.warm_starts import WarmStarts

FLIP = "bit flip"
FLIPPED_BACKUP = f"{FLIP}: backup"
# Other damages, spread over the kinds of file.
DAMAGES = {"sector": "lost sector", "cut": "cut file", "lost": "missing file"}

Wanted = Callable[[str], bool]


def simulate(table: Table, wanted: Wanted, seeds: range) -> None:
    """Runs on the simulated disk, in memory where there is a file system in memory."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="mfault", dir=memory) as home:
        simulation = Simulation(Path(home))
        runs: dict[str, Run] = {
            kind: lambda seed, kind=kind: simulation.run(kind, seed)  # type: ignore[misc]
            for kind in simulated_faults.KINDS
        }
        for pattern in simulated_faults.FLIPPED:
            runs[f"{FLIP}: {pattern}"] = lambda seed, one=pattern: simulation.flip(one, seed)  # type: ignore[misc]
        runs[FLIPPED_BACKUP] = simulation.flip_backup
        for kind, run in runs.items():
            if wanted(kind):
                table.run(kind, SIMULATED, seeds, lambda run=run: nullcontext(run))  # type: ignore[misc]


def damage(table: Table, wanted: Wanted, seeds: range) -> None:
    """Damage to the stored directory, half of it without the log files that segments cover."""
    files = fault_campaign.KINDS
    with tempfile.TemporaryDirectory(prefix="mfault") as home:
        campaigns = [Campaign(Path(home, str(gone)), gone) for gone in (False, True)]

        def one(file: str, fault: str, seed: int) -> str:
            there = [c for c in campaigns if any(c.directory.glob(file))]
            campaign = there[seed % len(there)]
            before = len(campaign.violations)
            outcome = campaign.run(file, fault, seed)
            if campaign.violations[before:]:
                raise Violation("; ".join(campaign.violations[before:]))
            return outcome

        runs: dict[str, Run] = {
            f"{FLIP}: {file}": lambda seed, file=file: one(file, "bit", seed)  # type: ignore[misc]
            for file in files
        }
        for fault, kind in DAMAGES.items():
            runs[kind] = lambda seed, fault=fault: one(files[seed % len(files)], fault, seed)  # type: ignore[misc]
        for kind, run in runs.items():
            if wanted(kind):
                table.run(kind, SIMULATED, seeds, lambda run=run: nullcontext(run))  # type: ignore[misc]


def real_nodes(table: Table, wanted: Wanted, seeds: range) -> None:
    """Runs with real nodes, on real disks."""
    with WarmStarts():
        _real_nodes(table, wanted, seeds)


def _real_nodes(table: Table, wanted: Wanted, seeds: range) -> None:
    for kind in filter(wanted, real_faults.KINDS):
        table.run(kind, REAL, seeds, lambda kind=kind: real_faults.stage(kind))  # type: ignore[misc]
    left = {f"{FLIP}: {pattern}": pattern for pattern in real_flips.PATTERNS}
    left = {k: v for k, v in left.items() if wanted(k) and not table.is_done(k, REAL, seeds)}
    for directory in real_flips.DIRECTORIES:
        if left:
            with directory() as flips:
                there = [kind for kind, pattern in left.items() if pattern in flips.kinds()]
                for kind in there:
                    table.run(kind, REAL, seeds, _flipping(flips, left.pop(kind)))


def _flipping(flips: real_flips.Flips, pattern: str) -> Callable[[], AbstractContextManager[Run]]:
    return lambda: nullcontext(lambda seed: flips.run(pattern, Random(f"{pattern} {seed}")))


@click.command()
@click.option("--kind", "kinds", multiple=True, help="only kinds that begin so; more than one goes")
@click.option("--runs", default=200, show_default=True, help="of each kind, simulated")
@click.option("--real", default=20, show_default=True, help="of each kind, with real nodes")
@click.option("--first", default=0, show_default=True, help="the first seed")
@click.option("--progress", type=click.Path(path_type=Path), help="note every run there; go on")
@click.option("--again", is_flag=True, help="run once more what went wrong or was too slow")
@click.option("--minutes", default=float("inf"), help="begin no run after so long")
@click.option("--keep/--no-keep", default=True, help="write a result file")
def main(
    kinds: tuple[str, ...],
    runs: int,
    real: int,
    first: int,
    progress: Path | None,
    again: bool,
    minutes: float,
    keep: bool,
) -> None:
    """See that no fault makes an answer wrong."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nodes and disks go, too
    table = Table(progress, time.monotonic() + minutes * 60, again)
    warm_kernels()

    def wanted(kind: str) -> bool:
        return not kinds or any(kind.startswith(one) for one in kinds)

    if runs:
        simulate(table, wanted, range(first, first + runs))
        damage(table, wanted, range(first, first + runs))
    if real:
        real_nodes(table, wanted, range(first, first + real))
    say(table.text())
    result = table.document()
    print(write_result("faults", result) if keep else result)
    for line in table.violations:
        print(line)
    sys.exit(1 if table.violations else 0)


if __name__ == "__main__":
    main()
