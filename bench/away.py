"""Lets a node miss millions of events and catch up: `python -m bench.away [--events N] [--gone]`.

Three nodes that share this machine; the third is killed, the others take N events, it is started
again, and clients write all the time (`tests.support.absence`).  It catches up from the log of its
peers, or, with `--gone`, from a copy of one of them, because they keep so little of the log.  Exits
1 when a node's own totals are not what was acknowledged, or the logs do not hold one history.
"""

import sys

import click

from bench.support import say, write_result
from tests.support.absence import LITTLE_LOG, Absence
from tests.support.cluster import Cluster
from tests.support.column_load import ColumnLoad


@click.command()
@click.option("--events", default=5_000_000, show_default=True, help="that the node misses")
@click.option("--rate", default=20_000.0, show_default=True, help="events/s before and after that")
@click.option("--gone", is_flag=True, help="the log is deleted meanwhile")
def main(events: int, rate: float, gone: bool) -> None:
    """See how a node comes back that was away for long."""
    environment = LITTLE_LOG if gone else {}
    with Cluster(3, environment) as cluster, ColumnLoad(cluster.addresses) as load:
        found = Absence(cluster, load, say, gone).run(events, rate)
    document = {"events_missed": events, "rate": rate, "settings": environment, **found}
    print(write_result("away-copy" if gone else "away", document))
    for line in found["violations"]:
        print(line)
    sys.exit(1 if found["violations"] else 0)


if __name__ == "__main__":
    main()
