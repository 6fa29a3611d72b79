"""Breaks a cluster again and again: `python -m bench.cluster_faults [--nodes N] [--each N]`.

Every kind of fault (`tests.support.cluster_campaign` says which) comes N times while clients ingest
`sync` through all nodes.  Exits 1 when an acknowledged event is missing, an event is counted twice,
a read goes back or lacks what was acknowledged, replicas differ, or partitions are away for longer
than they may.
"""

import sys
import time
from typing import Any

import click

from bench.kills import ranked
from bench.support import say, write_result
from tests.support.cluster import Cluster
from tests.support.cluster_campaign import (
    ALONE,
    ENVIRONMENT,
    FULL_DISK,
    TOGETHER,
    Campaign,
    Report,
    Struck,
    draw_plan,
)
from tests.support.small_disk import MIB, SmallDisk

# After kill -9 of a node: in 99 of 100 cases, and never more.
SERVED_P99_MAX, SERVED_MAX = 2.5, 4.0
FULL_DISK_NODE = 2
FULL_DISK_SIZE = 1024 * MIB


def figures(struck: list[Struck]) -> dict[str, Any]:
    return {
        "strokes": len(struck),
        "served_seconds": ranked([one.served_seconds for one in struck]),
        "whole_seconds": ranked([one.whole_seconds for one in struck]),
    }


def judged(report: Report) -> list[str]:
    """All that is wrong: what the campaign found, and node failures that took too long."""
    kills = ranked([one.served_seconds for one in report.of_kind("kill_node")])
    slow = []
    if kills and (kills["p99"] > SERVED_P99_MAX or kills["max"] > SERVED_MAX):
        slow.append(f"after kill -9 of a node all partitions served again: {kills}")
    return report.violations + slow


@click.command()
@click.option("--nodes", default=3, show_default=True)
@click.option("--each", default=10, show_default=True, help="strokes of each kind")
@click.option("--kinds", default="", help="only these, with commas between")
@click.option("--checks", default=3, show_default=True, help="of everything, on the way")
@click.option("--seed", default=20_261_126, show_default=True)
@click.option("--disk", is_flag=True, help="fill a disk, too (mounts a tmpfs: needs root)")
def main(nodes: int, each: int, kinds: str, checks: int, seed: int, disk: bool) -> None:
    """Break a cluster and see what it remembers."""
    began = time.monotonic()
    chosen = list(ALONE + TOGETHER if nodes > 1 else ALONE)
    disks = {FULL_DISK_NODE: SmallDisk(FULL_DISK_SIZE)} if disk else {}
    if kinds:
        chosen = kinds.split(",")
    elif disk:
        chosen.append(FULL_DISK)
    plan = [
        stroke._replace(node=FULL_DISK_NODE) if stroke.kind == FULL_DISK else stroke
        for stroke in draw_plan(seed, dict.fromkeys(chosen, each), nodes)
    ]
    data_dirs = {number: one.data_dir for number, one in disks.items()}
    with Cluster(nodes, ENVIRONMENT, data_dirs) as cluster:
        report = Campaign(cluster, seed, say, disks).run(plan, checks)
        if report.violations:
            say(cluster.log())
    violations = judged(report) if nodes > 1 else report.violations
    result = {
        "nodes": nodes,
        "seed": seed,
        "settings": ENVIRONMENT,
        "strokes": len(report.struck),
        "kinds": {kind: figures(report.of_kind(kind)) for kind in chosen},
        **dict(sorted(report.counters.items())),
        "missing": report.missing,
        "doubled": report.doubled,
        "violations": violations,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(write_result("cluster-faults", result))
    for line in violations:
        print(line)
    sys.exit(1 if violations or report.missing or report.doubled else 0)


if __name__ == "__main__":
    main()
