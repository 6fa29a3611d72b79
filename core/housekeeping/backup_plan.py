"""Decides about sets of backups: which can be a parent, what is broken, what may be deleted.

An incremental backup needs its whole chain.  Nothing that a kept backup needs is ever deleted, and
the newest that is whole stays whatever the rules say.

Does not know: clocks, stores, files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from meterd.protocol.backup_manifest import Manifest

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class KeepRules:
    """How many backups stay: of so many days, weeks and months the newest each, and so many."""

    daily: int = 7
    weekly: int = 4
    monthly: int = 0
    min_keep: int = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a backup when the others are pruned, and why."""

    name: str
    keep: bool
    reason: str


def newest_first(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return backups by the time of their cut, the newest first."""
    return sorted(manifests, key=lambda one: (one.finished, one.name), reverse=True)


def parent_for(manifests: Mapping[str, Manifest], owner: tuple[str, int, int]) -> Manifest | None:
    """Return the newest backup of an owner (cluster, node, incarnation) with its chain there."""
    for one in newest_first(manifests.values()):
        mine = (one.cluster_id, one.node_id, one.incarnation) == owner
        if mine and all(name in manifests for name in one.chain):
            return one
    return None


def prune(manifests: Mapping[str, Manifest], rules: KeepRules) -> list[Verdict]:
    """Say of every backup whether it stays, the newest first.  Each node's are judged alone."""
    verdicts: dict[str, Verdict] = {}
    owners: dict[tuple[str, int], list[Manifest]] = {}
    for one in newest_first(manifests.values()):
        owners.setdefault((one.cluster_id, one.node_id), []).append(one)
    for backups in owners.values():
        whole = [one for one in backups if all(name in manifests for name in one.chain)]
        for name, reason in _kept(whole, rules).items():
            verdicts[name] = Verdict(name, True, reason)
        for one in whole:
            if one.name in verdicts and verdicts[one.name].keep:
                for needed in one.chain:
                    verdicts.setdefault(needed, Verdict(needed, True, f"{one.name} needs it"))
    return [
        verdicts.get(one.name, Verdict(one.name, False, _why_not(one, manifests)))
        for one in newest_first(manifests.values())
    ]


def _kept(whole: Sequence[Manifest], rules: KeepRules) -> dict[str, str]:
    """Return the backups that the rules keep, each with the rule; `whole` has the newest first."""
    kept: dict[str, str] = {}
    if whole:
        kept[whole[0].name] = "the newest"
    for one in whole[: rules.min_keep]:
        kept.setdefault(one.name, f"one of the newest {rules.min_keep}")
    periods = (("day", rules.daily), ("week", rules.weekly), ("month", rules.monthly))
    for period, count in periods:
        seen: set[str] = set()
        for one in whole:
            label = _label(one, period)
            if label not in seen and len(seen) < count:
                kept.setdefault(one.name, f"the newest of {period} {label}")
            seen.add(label)
    return kept


def _label(one: Manifest, period: str) -> str:
    # In whole numbers: a float of seconds would not hold every nanosecond.
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=one.finished // NS)
    year, week, _ = moment.isocalendar()
    return {
        "day": f"{moment:%Y-%m-%d}",
        "week": f"{year}-W{week:02d}",
        "month": f"{moment:%Y-%m}",
    }[period]


def _why_not(one: Manifest, manifests: Mapping[str, Manifest]) -> str:
    missing = [name for name in one.chain if name not in manifests]
    return f"its chain is broken: {missing[0]} is missing" if missing else "no rule keeps it"
