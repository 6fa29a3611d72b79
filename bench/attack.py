"""Attacks a node with a thousand hostile connections at once, beside one good client.

``python -m bench.attack [--seconds N]``.  Each attack runs against the same node: a thousand
connections of one kind, then a thousand of all kinds together.  The result says what the good
client saw while calm and while besieged, and what the memory of all the node's processes (PSS) did.

Attackers, good client and node share the machine's processors, so the latencies are those of a node
that is short of processor time as well; the failures and the memory are not touched by that.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.node import Node, meterd_node, node_directory
from bench.support import say, write_result
from tests.support import siege
from tests.support.attackers import KINDS

CONNECTIONS = 1_000
SECONDS_DEFAULT = 6.0
CALM_SECONDS = 5.0
# So much may all processes together grow.  Peers that begin as good clients have earned as much
# again.
GROWTH_MAX = 64 * 1024 * 1024
TURNCOAT = "turncoat"
ALONE = ("noise", "endless", "half_frame", "oversized_frame", "wrong_version")


def attacks() -> dict[str, dict[str, int]]:
    """A thousand connections of each of the plain kinds, then of all kinds in equal parts."""
    kinds = [kind for kind in KINDS if kind != TURNCOAT]
    every, rest = divmod(CONNECTIONS, len(kinds))
    together = {kind: every + (number < rest) for number, kind in enumerate(kinds)}
    alone = {kind: {kind: CONNECTIONS} for kind in (*ALONE, TURNCOAT)}
    return alone | {"all_together": together}


def client_figures(client: siege.GoodClient) -> dict[str, Any]:
    return {
        "requests": len(client.seconds),
        "failures": client.failures,
        "p50_ms": round(client.percentile(0.5) * 1000, 2),
        "p99_ms": round(client.percentile(0.99) * 1000, 2),
        "max_ms": round(client.percentile(1.0) * 1000, 2),
    }


def attack_once(node: Node, counts: Mapping[str, int], seconds: float) -> dict[str, Any]:
    pids = {str(process.pid): process.pid for process in node.pids()}
    found = siege.besiege(node.address, pids, counts, seconds)
    memory = found.memory
    limit = GROWTH_MAX * 2 if TURNCOAT in counts else GROWTH_MAX
    survived = [process.pid for process in node.pids()] == list(pids.values())
    return {
        "connections": found.attack,
        "good_client": client_figures(found.client),
        "pss_bytes": {
            "before": memory.before,
            "peak": max(memory.samples),
            "after": memory.samples[-1],
            "growth": memory.growth,
            "growth_max": limit,
        },
        "passed": not found.client.failures and memory.growth < limit and survived,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Attack a node, measure a good client beside it.")
    parser.add_argument("--seconds", type=float, default=SECONDS_DEFAULT)
    seconds = parser.parse_args().seconds
    with node_directory(Path(tempfile.gettempdir())) as directory, meterd_node(directory) as node:
        siege.prepare(node.address)
        siege.serve_calmly(node.address, "warm", 1.0)
        calm = client_figures(siege.serve_calmly(node.address, "calm", CALM_SECONDS))
        say(f"calm: {calm}")
        results = {}
        for name, counts in attacks().items():
            results[name] = attack_once(node, counts, seconds)
            figures = {key: results[name][key] for key in ("good_client", "pss_bytes", "passed")}
            say(f"{name}: {figures}")
            time.sleep(1.0)  # the node surveys once more, and gives back what is free
        settings = {"connections": CONNECTIONS, "seconds": seconds}
        path = write_result("attack", {"settings": settings, "calm": calm, "attacks": results})
    say(f"{path.name}")
    if not all(result["passed"] for result in results.values()):
        raise SystemExit("an attack had an effect that it must not have")


if __name__ == "__main__":
    main()
