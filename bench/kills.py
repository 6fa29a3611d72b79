"""Kills a working node hundreds of times: `python -m bench.kills [--kills N] [--seed N]`.

Every actor and the supervisor gets N kill -9 (`tests.support.kill_campaign` says how) while clients
ingest `sync`.  Exits 1 when an acknowledged event is missing, an event is counted twice, or the
node does not serve again in time.
"""

import sys
import time
from statistics import median
from typing import Any

import click

from bench.support import say, write_result
from tests.support.kill_campaign import ENVIRONMENT, VICTIMS, Campaign, Kill, Report, draw_plan
from tests.support.node import Node

# From the kill to the first new acknowledgement; the restart of a killed daemon by us is included.
SERVED_SECONDS_MAX = 3.0


def ranked(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and greatest, by nearest rank; of none nothing."""
    if not seconds:
        return {}
    seconds = sorted(seconds)
    return {
        "median": round(median(seconds), 3),
        "p99": round(seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))], 3),
        "max": round(seconds[-1], 3),
    }


def victim_figures(kills: list[Kill]) -> dict[str, Any]:
    served = [kill for kill in kills if not kill.interrupted]
    figures: dict[str, Any] = {
        "kills": len(kills),
        "with_requests_in_flight": sum(kill.in_flight > 0 for kill in kills),
        "interrupted_by_the_next": len(kills) - len(served),
        "served_seconds": ranked([kill.served_seconds for kill in served]),
        "whole_seconds": ranked([kill.whole_at - kill.at for kill in kills if kill.whole_at]),
    }
    restarted = [kill for kill in served if kill.restarted_at]
    if restarted:
        figures["served_seconds_from_new_start"] = ranked(
            [kill.served_seconds + kill.at - kill.restarted_at for kill in restarted]
        )
        figures["children_gone_seconds"] = ranked(
            [kill.children_gone_at - kill.at for kill in kills]
        )
    return figures


def judged(report: Report) -> list[str]:
    """All that is wrong: what the campaign found, and every recovery that took too long."""
    slow = [
        f"{kill.victim}: served again after {kill.served_seconds:.3f} s"
        for kill in report.kills
        if not kill.interrupted and kill.served_seconds > SERVED_SECONDS_MAX
    ]
    return report.violations + slow


@click.command()
@click.option("--kills", default=36, show_default=True, help="of each victim")
@click.option("--checks", default=4, show_default=True, help="of everything, on the way")
@click.option("--seed", default=20_261_121, show_default=True)
def main(kills: int, checks: int, seed: int) -> None:
    """Kill a node's processes and see what it remembers."""
    began = time.monotonic()
    with Node(environment=ENVIRONMENT) as node:
        report = Campaign(node, seed, say).run(draw_plan(seed, kills), checks)
        if report.violations:
            say(node.log())
    violations = judged(report)
    result = {
        "seed": seed,
        "settings": ENVIRONMENT,
        "kills": len(report.kills),
        "kills_with_requests_in_flight": sum(kill.in_flight > 0 for kill in report.kills),
        "victims": {victim: victim_figures(report.of_victim(victim)) for victim in VICTIMS},
        "served_seconds": ranked(
            [kill.served_seconds for kill in report.kills if not kill.interrupted]
        ),
        "restarts": dict(report.restarts),
        **dict(sorted(report.counters.items())),
        "missing": report.missing,
        "doubled": report.doubled,
        "violations": violations,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(write_result("kills", result))
    for line in violations:
        print(line)
    sys.exit(1 if violations or report.missing or report.doubled else 0)


if __name__ == "__main__":
    main()
