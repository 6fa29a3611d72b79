"""Compares every answer of a running node with the plain-Python model, after real input.

Events of `generator` go through `meterctl ingest` into the node and through the model; then every
account's total of every metric over several ranges, and groups, filters and series of many
accounts, must be equal.  Used by a test with few events and by `bench.million` with a million.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

from meterd.client import Client
from tests.support.generator import Generator
from tests.support.model import Answer, Metric, Model, Question, Stored
from tests.support.periods import DAY

ROOT = Path(__file__).resolve().parent.parent.parent
HOUR = DAY // 24
# The busiest accounts are all looked at in detail, and of the others every so many.
BUSIEST = 15
EVERY = 211
MISMATCHES_MAX = 20
# No metric of the generator has more decimals.
EVENT_DIGITS_MAX = 6


class IndexedModel(Model):
    """The model with its events sorted by account and metric, so that many questions are quick."""

    def build(self) -> None:
        """Sort what was stored; call it when everything is ingested."""
        self.book: dict[tuple[str, str], list[Stored]] = defaultdict(list)
        for event in self.stored:
            self.book[event.account, event.metric].append(event)
        for events in self.book.values():
            events.sort(key=lambda event: (event.timestamp, event.order))

    def answer_of_account(self, account: str, question: Question) -> Answer:
        """Return the same as `usage`, from the account's own events."""
        small = Model()
        small.versions, small.horizon = self.versions, self.horizon
        small.stored = self.book.get((account, question.metric), [])
        return small.usage(account, question)


@dataclass
class Report:
    """What was compared."""

    statuses: dict[str, int]
    comparisons: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)

    def compare(self, kind: str, what: str, found: object, expected: object) -> None:
        self.comparisons[kind] += 1
        if found != expected and len(self.mismatches) < MISMATCHES_MAX:
            self.mismatches.append(f"{kind} {what}: {found!r}, and the model says {expected!r}")


def put_metrics(client: Client, model: Model, metrics: tuple[Metric, ...]) -> None:
    """Register the same metrics with both."""
    for metric in metrics:
        model.put_metric(metric)
        period = metric.period
        fields: dict[str, Any] = {"kind": period.kind, "timezone": period.timezone}
        if period.kind == "month":
            fields["anchor_day"] = period.anchor_day
        if period.kind == "fixed":
            fields["duration"], fields["epoch"] = period.duration, period.epoch
        client.put_metric(
            metric.code,
            aggregation=metric.aggregation,
            decimals=metric.decimals,
            dimensions=list(metric.dimensions),
            unique_on=metric.unique_on,
            period=fields,
        )


def ingest(address: str, generator: Generator, count: int, file: Path) -> dict[str, int]:
    """Write events to a file and send it with `meterctl ingest`; return its JSON result."""
    with file.open("w") as target:
        generator.write_ndjson(target, count)
    command = [sys.executable, str(ROOT / "bin" / "meterctl"), "-n", address, "--timeout", "60"]
    done = subprocess.run(
        [*command, "-o", "json", "ingest", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr[-2000:]  # some events are refused on purpose
    result: dict[str, int] = json.loads(done.stdout)
    return result


def check(address: str, generator: Generator, count: int, file: Path) -> Report:
    """Ingest into node and model, compare everything, return what was compared."""
    model = IndexedModel()
    with Client([address], timeout=120) as client:
        put_metrics(client, model, generator.metrics)
        result = ingest(address, generator, count, file)
        statuses = Counter(
            model.ingest(event, generator.now)[0] for event in generator.events(count)
        )
        report = Report(result)
        for status in ("stored", "duplicate", "conflict", "rejected"):
            report.compare("status", status, result[status], statuses[status])
        report.compare("status", "received", result["received"], count)
        report.compare("status", "unknown", result["unknown"], 0)
        model.build()
        for metric in generator.metrics:
            _compare_accounts(client, model, metric, generator.now, report)
            _compare_details(client, model, metric, generator.now, report)
    return report


def _ranges(model: Model, metric: Metric, now: int) -> dict[str, tuple[int, int]]:
    current = model.period_of(metric.code, now)
    return {
        "everything": (now - 80 * DAY, now + 2 * DAY),
        "current": current,
        "previous": model.period_of(metric.code, current[0] - 1),
        "odd": (now - 31 * DAY - 12_345, now - 17 * HOUR + 1),
    }


def _compare_accounts(
    client: Client, model: IndexedModel, metric: Metric, now: int, report: Report
) -> None:
    accounts = [account for account, code in model.book if code == metric.code]
    for name, (start, end) in _ranges(model, metric, now).items():
        question = Question(metric.code, start, end)
        expected = {}
        for account in accounts:
            answer = model.answer_of_account(account, question)
            if answer.count or answer.value:
                expected[account] = (answer.value, answer.count)
        found = {
            row.account: (row.value, row.count)
            for row in client.accounts(metric.code, start=start, end=end)
        }
        report.compare("accounts", f"{metric.code} {name}", len(found), len(expected))
        for account, (value, count) in expected.items():
            got = found.get(account, (None, 0))
            report.compare("total", f"{metric.code} {name} {account}", got[1], count)
            report.compare("total", f"{metric.code} {name} {account}", _close(got[0], value), True)


def _compare_details(
    client: Client, model: IndexedModel, metric: Metric, now: int, report: Report
) -> None:
    accounts = sorted(
        (account for account, code in model.book if code == metric.code),
        key=lambda account: (-len(model.book[account, metric.code]), account),
    )
    subsets = [
        keys
        for size in range(1, len(metric.dimensions) + 1)
        for keys in combinations(metric.dimensions, size)
    ]
    for account in accounts[:BUSIEST] + accounts[BUSIEST::EVERY]:
        for name, (start, end) in _ranges(model, metric, now).items():
            for keys in subsets:
                _compare_usage(
                    client, model, report, account, Question(metric.code, start, end, {}, keys)
                )
            if metric.dimensions and name != "everything":
                key = metric.dimensions[0]
                values = sorted(
                    {event.dimension(key) or "" for event in model.book[account, metric.code]}
                    - {""}
                )[:2]
                if values:
                    question = Question(metric.code, start, end, {key: values})
                    _compare_usage(client, model, report, account, question)
        for window, days, timezone in (
            ("day", 20, "UTC"),
            ("hour", 2, "America/New_York"),
            ("week", 40, "Asia/Kolkata"),
            ("month", 70, "Europe/Berlin"),
        ):
            question = Question(metric.code, now - days * DAY, now, {}, (), window, timezone)
            _compare_usage(client, model, report, account, question)


def _compare_usage(
    client: Client, model: IndexedModel, report: Report, account: str, question: Question
) -> None:
    expected = model.answer_of_account(account, question)
    found = client.usage(
        account,
        question.metric,
        start=question.start,
        end=question.end,
        filters={key: list(values) for key, values in question.filters.items()} or None,
        group_by=list(question.group_by),
        window=question.window,
        timezone=question.timezone if question.window else None,
    )
    what = f"{account} {question}"
    report.compare("usage", what, found.count, expected.count)
    report.compare("usage", what, _close(found.value, expected.value), True)
    groups = {tuple(group.key[key] for key in question.group_by): group for group in found.groups}
    if question.group_by:
        report.compare("groups", what, set(groups), set(expected.groups))
        for key, answer in expected.groups.items():
            group = groups.get(key)
            value = None if group is None else group.value
            report.compare("group", what, _close(value, answer.value), True)
    if question.window:
        points = [(point.start, point.count) for point in found.series]
        report.compare(
            "series", what, points, [(start, count) for start, _, count in expected.series]
        )
        for point, (_, wanted, _) in zip(found.series, expected.series, strict=False):
            report.compare("point", what, _close(point.value, wanted), True)


def _close(found: Decimal | None, expected: Fraction | None) -> bool:
    """Equal; or, with more digits than any event has (an average), correctly rounded to them."""
    if found is None or expected is None:
        return found is None and expected is None
    digits = -int(found.as_tuple().exponent)
    if digits <= EVENT_DIGITS_MAX:
        return Fraction(found) == expected
    return Fraction(found) == round(expected, digits)
