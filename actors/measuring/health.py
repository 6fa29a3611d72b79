"""Says how a node does: what /health, /livez and /readyz answer.

Three questions, because three kinds of programs ask.  *Live*: must it be restarted?  Depends on
this process alone; the supervisor sees to the others, so neither a full disk nor a replay ever gets
a node restarted.  *Ready*: may it get such requests?  *Health*: can it do all of its work?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Whom a request passes.
PATHS = {
    "read": ("router", "usage", "query"),
    "write": ("router", "ingest", "replication", "wal_writer", "usage"),
}
# States as operators know them, from the supervisor's.
STATES = {
    "starting": "starting",
    "running": "active",
    "degraded": "restarting",
    "stopping": "stopping",
}


@dataclass(frozen=True)
class Disk:
    """Free space, and the limits that mean something."""

    free: int
    warn: int
    stop: int
    refusing: bool  # the node has stopped taking events, until there is a margin again


@dataclass(frozen=True)
class Quorum:
    """What a node of a cluster knows of leaders."""

    groups: int  # of which it has a replica
    leads: int  # partitions
    leaderless: int  # groups of its own whose leader it does not know
    silent: int = 0  # whose leader it knows, but gets no answer from


def checks_of(
    actors: Mapping[str, Any],
    disk: Disk,
    quorum: Quorum | None = None,
    clock_ahead: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Return {name: {status, ...}}: pass, warn or fail."""
    checks: dict[str, dict[str, Any]] = {}
    for name, actor in actors.items():
        good = bool(actor["ready"])
        checks[f"actor_{name}"] = {
            "status": "pass" if good else "fail",
            "reason": "" if good else "not ready",
        }
    if disk.refusing or disk.free < disk.stop:
        status, limit = "fail", disk.stop
    else:
        status, limit = ("warn", disk.warn) if disk.free < disk.warn else ("pass", disk.warn)
    checks["disk"] = {"status": status, "value": disk.free, "limit": limit}
    if quorum is not None:
        checks["quorum"] = _quorum_check(quorum)
    if clock_ahead is not None:
        checks["clock"] = _clock_check(clock_ahead)
    return checks


def _clock_check(ahead: float) -> dict[str, Any]:
    """Do events expire by what the clock shows?  `ahead`: seconds; 0: they do."""
    if not ahead:
        return {"status": "pass", "value": 0, "reason": ""}
    reason = f"the clock is {ahead / 86_400:.1f} days ahead of what is known: nothing expires by it"
    return {"status": "warn", "value": int(ahead), "reason": reason}


def _quorum_check(quorum: Quorum) -> dict[str, Any]:
    """Can what is sent here be committed?  A minority knows no leader and can elect none; who
    is not heard knows leaders that nothing can be passed on to."""
    lacking = quorum.leaderless + quorum.silent
    if not lacking:
        return {"status": "pass", "value": 0, "reason": ""}
    status = "fail" if not quorum.leads and lacking >= quorum.groups else "warn"
    reasons = []
    if quorum.leaderless:
        reasons.append(f"{quorum.leaderless} of {quorum.groups} groups have no leader known here")
    if quorum.silent:
        reasons.append(f"the leaders of {quorum.silent} do not answer this node")
    return {"status": status, "value": lacking, "reason": "; ".join(reasons)}


def ready_for(what: str, checks: Mapping[str, Mapping[str, Any]]) -> bool:
    """May the node get requests that read, or that write?"""
    needed = [f"actor_{name}" for name in PATHS[what]]
    if what == "write":
        needed += ["disk", *(["quorum"] if "quorum" in checks else [])]
    return all(checks.get(name, {"status": "fail"})["status"] != "fail" for name in needed)


def report(
    page: Mapping[str, Any],
    disk: Disk,
    who: Mapping[str, Any],
    now: float,
    quorum: Quorum | None = None,
    clock_ahead: float | None = None,
) -> dict[str, Any]:
    """Return the body of /health.  `page` is the supervisor's, `now` seconds since the epoch.

    `quorum` is None for a single node.  `clock_ahead`: by how many seconds the clock is too far in
    front to be believed; None: it is not known yet.
    """
    checks = checks_of(page["actors"], disk, quorum, clock_ahead)
    ready = {what: ready_for(what, checks) for what in PATHS}
    statuses = {check["status"] for check in checks.values()}
    healthy = "fail" not in statuses and page["state"] == "running"
    failing = [name for name, check in checks.items() if check["status"] == "fail"]
    if not healthy:
        status = "fail"
    else:
        status = "warn" if "warn" in statuses else "pass"
    return {
        "status": status,
        "message": f"failing: {', '.join(failing)}" if failing else "",
        "uptime_seconds": round(now - page["started"], 3),
        **who,
        "state": STATES[page["state"]],
        "ready": ready,
        "checks": checks,
    }
