"""Fills the disk under a working node again and again: `python -m bench.full_disk [--runs N]`.

Each run is a node of its own on a small tmpfs or ext4, which needs root, and a plan drawn from a
seed (`tests.support.disk_campaign` says which).  Exits 1 when an acknowledged event is missing, one
is counted twice, an answer on a full disk is another than `disk_stop`, or events are not taken
again within 30 seconds of there being room.
"""

import sys
import time
from dataclasses import asdict

import click

from bench.support import say, write_result
from tests.support.disk_campaign import OPTIONS, Run


@click.command()
@click.option("--runs", default=24, show_default=True)
@click.option("--seed", default=1, show_default=True, help="of the first run")
def main(runs: int, seed: int) -> None:
    """Fill disks and see what nodes remember."""
    began, reports = time.monotonic(), []
    for number in range(seed, seed + runs):
        report = Run(number).run()
        reports.append(report)
        say(f"{asdict(report)}")
    resumed = sorted(report.resume_seconds for report in reports)
    violations = [f"seed {r.seed}: {line}" for r in reports for line in r.violations]
    result = {
        "settings": OPTIONS,
        "runs": len(reports),
        "events_acknowledged": sum(report.acknowledged for report in reports),
        "answered_disk_stop": sum(report.refused.get("disk_stop", 0) for report in reports),
        "resume_seconds": {"median": resumed[len(resumed) // 2], "max": resumed[-1]},
        "by_run": [asdict(report) for report in reports],
        "violations": violations,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(write_result("full_disk", result))
    for line in violations:
        print(line)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
