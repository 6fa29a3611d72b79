"""Every fault of a disk and every kill, again and again: `python -m bench.faults [--kind KIND]…`.

Each run is drawn from a seed: a history of events, one fault in it, a start, and every answer held
against a plain model: right, or refused with file and offset.  The simulated disk loses what was
not synced in every way a disk may, at any call (`tests.support.simulated_faults`); damage is done
to files that are at rest (`fault_campaign`); real nodes run on real and on failing disks
(`real_faults`), some of which need root.  Exits 1 at the first violation of a kind; what the table
says was run.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from bench.support import say, write_result
from meterd.actors.node import warm_kernels
from tests.support import fault_campaign, real_faults, real_files, simulated_faults
from tests.support.fault_campaign import Campaign
from tests.support.simulated_faults import Simulation

SIMULATED, REAL = "simulated", "real"
FLIP = "bit flip"
FLIPPED_BACKUP = f"{FLIP}: backup"
# Other damages, spread over the kinds of file.
DAMAGES = {"sector": "lost sector", "cut": "cut file", "lost": "missing file"}


class Table:
    """What was run and how it ended, by kind and disk."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, Counter[str]]] = defaultdict(
            lambda: {SIMULATED: Counter(), REAL: Counter()}
        )
        self.violations: list[str] = []
        self.seconds: dict[str, float] = {}

    def noting(self, disk: str) -> Callable[[str, str], None]:
        return lambda kind, outcome: self.note(disk, kind, outcome)

    def note(self, disk: str, kind: str, outcome: str) -> None:
        self.outcomes[kind][disk][outcome] += 1

    def run(self, kind: str, disk: str, work: Callable[[], Any]) -> None:
        """Do all runs of a kind; what breaks the contract ends them."""
        began = time.monotonic()
        try:
            work()
        except Exception as error:
            self.violations.append(f"{kind}, {disk}: {error!r}")
        self.seconds[f"{kind}, {disk}"] = round(time.monotonic() - began, 1)
        say(f"{kind}, {disk}: {self.seconds[f'{kind}, {disk}']} s; {self.violations[-1:]}")
        gc.collect()

    def rows(self) -> dict[str, Any]:
        return {
            kind: {disk: found.total() for disk, found in disks.items()}
            | {"outcomes": {disk: dict(found) for disk, found in disks.items() if found}}
            for kind, disks in self.outcomes.items()
        }

    def text(self) -> str:
        lines = [f"{'kind':40} {SIMULATED:>9} {REAL:>9}"]
        for kind, row in self.rows().items():
            lines.append(f"{kind:40} {row[SIMULATED]:9} {row[REAL]:9}")
        return "\n".join(lines)


def simulate(table: Table, kinds: Iterable[str], seeds: range) -> None:
    """Runs on the simulated disk, in memory where there is a file system in memory."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="mfault", dir=memory) as home:
        simulation = Simulation(Path(home))
        runs: dict[str, Callable[[int], str]] = {
            kind: lambda seed, kind=kind: simulation.run(kind, seed)  # type: ignore[misc]
            for kind in simulated_faults.KINDS
        }
        for pattern in simulated_faults.FLIPPED:
            runs[f"{FLIP}: {pattern}"] = lambda seed, one=pattern: simulation.flip(one, seed)  # type: ignore[misc]
        runs[FLIPPED_BACKUP] = simulation.flip_backup

        def all_of(kind: str) -> None:
            for seed in seeds:
                try:
                    table.note(SIMULATED, kind, runs[kind](seed))
                except Exception as error:
                    error.add_note(f"seed {seed}")
                    raise type(error)(f"seed {seed}", *error.args) from error

        for kind in kinds:
            if kind in runs:
                table.run(kind, SIMULATED, lambda: all_of(kind))  # noqa: B023


def damage(table: Table, wanted: Callable[[str], bool], seeds: range) -> None:
    """Damage to the stored directory, half of it without the log files that segments cover."""
    with tempfile.TemporaryDirectory(prefix="mfault") as home:
        campaigns = [Campaign(Path(home, str(gone)), gone) for gone in (False, True)]

        def one(kind: str, file: str, fault: str, seed: int) -> None:
            there = [c for c in campaigns if any(c.directory.glob(file))]
            campaign = there[seed % len(there)]
            before = len(campaign.violations)
            outcome = campaign.run(file, fault, seed)
            found = campaign.violations[before:]
            table.violations.extend(found)
            table.note(SIMULATED, kind, "violation" if found else outcome)

        files = fault_campaign.KINDS
        for file in files:
            kind = f"{FLIP}: {file}"
            if wanted(kind):
                table.run(
                    kind,
                    SIMULATED,
                    lambda: [one(kind, file, "bit", seed) for seed in seeds],  # noqa: B023
                )
        for fault, kind in DAMAGES.items():
            if wanted(kind):
                table.run(
                    kind,
                    SIMULATED,
                    lambda: [one(kind, files[n % len(files)], fault, n) for n in seeds],  # noqa: B023
                )


@click.command()
@click.option("--kind", "kinds", multiple=True, help="only kinds that begin so; more than one goes")
@click.option("--runs", default=200, show_default=True, help="of each kind, simulated")
@click.option("--real", default=20, show_default=True, help="of each kind, with real nodes")
@click.option("--first", default=0, show_default=True, help="the first seed")
@click.option("--keep/--no-keep", default=True, help="write a result file")
def main(kinds: tuple[str, ...], runs: int, real: int, first: int, keep: bool) -> None:
    """See that no fault makes an answer wrong."""
    logging.disable(logging.CRITICAL)
    began, table = time.monotonic(), Table()
    warm_kernels()

    def wanted(kind: str) -> bool:
        return not kinds or any(kind.startswith(one) for one in kinds)

    known = [*simulated_faults.KINDS, *(f"{FLIP}: {one}" for one in simulated_faults.FLIPPED)]
    known.append(FLIPPED_BACKUP)
    seeds, real_seeds = range(first, first + runs), range(first, first + real)
    if runs:
        simulate(table, filter(wanted, known), seeds)
        damage(table, wanted, seeds)
    if real:
        note = table.noting(REAL)
        for kind in filter(wanted, real_faults.KINDS):
            table.run(
                kind,
                REAL,
                lambda: real_faults.run_real(kind, real_seeds, note),  # noqa: B023
            )
        if wanted(FLIP):
            table.run(FLIP, REAL, lambda: real_files.run_flips(real, first, note))
    result = {
        "runs": sum(row[SIMULATED] + row[REAL] for row in table.rows().values()),
        "table": table.rows(),
        "violations": table.violations,
        "seconds_by_kind": table.seconds,
        "seconds": round(time.monotonic() - began, 1),
    }
    say(table.text())
    print(write_result("faults", result) if keep else result)
    for line in table.violations:
        print(line)
    sys.exit(1 if table.violations else 0)


if __name__ == "__main__":
    main()
