"""Damages a data directory in thousands of ways: `python -m bench.faults [--seeds N]`.

`tests.support.fault_campaign` says how.  Exits 1 when an answer is wrong, when an event that was
stored is taken again, when something ends other than with a clear error, or when fsck at level
full does not name the file of a flipped bit.
"""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from bench.support import say, write_result
from tests.support.fault_campaign import FAULTS, KINDS, Campaign


@click.command()
@click.option("--seeds", default=200, show_default=True, help="of bit flips, for each kind of file")
@click.option("--others", default=40, show_default=True, help="of every other fault, for each kind")
@click.option("--first", default=0, show_default=True, help="the first seed")
@click.option("--keep/--no-keep", default=True, help="write a result file")
def main(seeds: int, others: int, first: int, keep: bool) -> None:
    """Damage a directory and see that no answer is wrong."""
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    result: dict[str, Any] = {"seeds": seeds, "others": others, "first_seed": first}
    violations: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mfault") as home:
        for gone in (False, True):
            campaign = Campaign(Path(home, str(gone)), gone)
            runs = _run(campaign, seeds // 2, others // 2, first)
            violations += campaign.violations
            said = "segments alone" if gone else "segments and their log files"
            result[said] = {"runs": runs, "outcomes": dict(sorted(campaign.outcomes.items()))}
    result |= {"violations": violations[:50], "seconds": round(time.monotonic() - began, 1)}
    if keep:
        print(write_result("faults", result))
    else:
        say(str(result))
    for line in violations:
        print(line)
    sys.exit(1 if violations else 0)


def _run(campaign: Campaign, seeds: int, others: int, first: int) -> int:
    done = 0
    for kind in KINDS:
        for fault in FAULTS:
            for seed in range(first, first + (seeds if fault == "bit" else others)):
                campaign.run(kind, fault, seed)
                done += 1
            gc.collect()
        say(f"{kind}: {done} runs, {len(campaign.violations)} violations")
    return done


if __name__ == "__main__":
    main()
