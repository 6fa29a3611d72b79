"""Compares everything a node says about its events with a ledger in which nothing is undecided.

Totals of every account come from memory (the current period) and from the log files (odd ranges,
everything); groups and listings are asked for account by account, the feed gives the log from its
beginning; a sample that is sent again must be all duplicates.  Listings say by id what is missing
and what is there twice; totals would tell that something is, but not what.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from meterd.client import Client, StoredEvent
from tests.support.kill_ledger import DAY, LATE_DAYS, METRICS, Expected, Total, account_name

MISMATCHES_MAX = 30
ODD_RANGES = 3
SAMPLE_ACCOUNTS = 15
RESEND_EVENTS = 500
# Listings of a whole check, where there are more accounts: the feed and totals are of all.
LISTINGS_MAX = 300
PAGE = 2_000


class Check:
    """One comparison of everything; the results are its attributes."""

    def __init__(self, client: Client, expected: Expected, random: Random) -> None:
        self.expected = expected
        self.comparisons = 0
        self.missing = 0
        self.doubled = 0
        self.violations: list[str] = []
        self._client = client
        self._random = random
        self._now = time.time_ns()

    def run(self, whole: bool) -> None:
        """Compare totals of all accounts, and a sample of the rest, or the `whole` of it."""
        accounts = list(range(self.expected.accounts))
        sample = self._random.sample(accounts, SAMPLE_ACCOUNTS)
        for metric in range(len(METRICS)):
            self._totals(metric, {})
            for start, end in self._ranges():
                self._totals(metric, {"start": start, "end": end})
        for account in sample:
            self._groups(account)
        listed = self._random.sample(accounts, min(len(accounts), LISTINGS_MAX))
        for account in listed if whole else sample:
            self._listing(account)
        if whole:
            self._feed()
        self._resend(sample)

    def run_by_account(self) -> None:
        """Compare a sample, account by account: also where no node has all partitions."""
        sample = self._random.sample(range(self.expected.accounts), SAMPLE_ACCOUNTS * 4)
        for account in sample:
            self._groups(account)
            self._listing(account)
        self._resend(sample)

    def _compare(self, what: str, found: Any, expected: Any) -> None:
        self.comparisons += 1
        if found != expected:
            self._violation(f"{what}: {found!r}, and the ledger says {expected!r}")

    def _violation(self, text: str) -> None:
        if len(self.violations) < MISMATCHES_MAX:
            self.violations.append(text)

    def _ranges(self) -> list[tuple[int, int]]:
        """Everything, and some ranges that no period and no file has for its limits."""
        first = self._now - (LATE_DAYS + 1) * DAY
        span = self._now + DAY - first
        odd = [sorted(self._random.sample(range(span), 2)) for _ in range(ODD_RANGES)]
        odd.append([span - DAY - 60 * 10**9, span])  # from a minute ago on
        return [(first, first + span), *((first + start, first + end) for start, end in odd)]

    def _totals(self, metric: int, options: dict[str, int]) -> None:
        code = METRICS[metric].code
        pages = self._client.accounts(code, page_size=PAGE, **options)
        found: dict[str, Total] = {}
        for row in pages:
            if row.account in found:
                self._violation(f"{code} {options}: {row.account} is there twice")
            found[row.account] = Total(row.value, row.count)
        start, end = pages.head["start"], pages.head["end"]
        expected = self.expected.totals(metric, start, end)
        self._compare(f"{code} {options}: accounts", set(found), set(expected))
        for account, total in expected.items():
            what = f"{code} of {account} in [{start}, {end}) {'' if options else 'from memory'}"
            self._compare(what, found.get(account), total)

    def _groups(self, account: int) -> None:
        name = account_name(account)
        for metric, counted in enumerate(METRICS):
            for options in ({}, *({"start": a, "end": b} for a, b in self._ranges())):
                usage = self._client.usage(name, counted.code, group_by=["region"], **options)
                expected = self.expected.groups(account, metric, usage.start, usage.end)
                found = {
                    group.key["region"]: Total(group.value, group.count) for group in usage.groups
                }
                what = f"{counted.code} of {name} by region {options}"
                self._compare(what, found, expected)
                count = sum(total.count for total in expected.values())
                self._compare(f"{what}: events", usage.count, count)

    def _listing(self, account: int) -> None:
        name = account_name(account)
        events = self._client.events(name, page_size=PAGE)
        self._compare_listing(f"events of {name}", events, self.expected.listing(account))

    def _compare_listing(
        self, what: str, events: Iterable[StoredEvent], expected: dict[str, StoredEvent]
    ) -> None:
        """Each expected event is there once, as it was sent, and nothing else is."""
        found = list(events)
        seen = Counter(event.id for event in found)
        missing = expected.keys() - seen.keys()
        doubled = [event_id for event_id, count in seen.items() if count > 1]
        self.missing += len(missing)
        self.doubled += len(doubled)
        if missing or doubled:
            self._violation(f"{what}: missing {sorted(missing)[:5]}, doubled {doubled[:5]}")
        for event in found:
            self._compare(what, event, expected.get(event.id))

    def _feed(self) -> None:
        """Every account and id is once in the log as it is fed from the beginning."""
        seen = Counter((event.account, event.id) for event in self._client.feed(page_size=PAGE))
        doubled = [key for key, count in seen.items() if count > 1]
        expected = self.expected.identities()
        missing = expected - seen.keys()
        self.doubled += len(doubled)
        self.missing += len(missing)
        self._compare("events fed twice", doubled[:5], [])
        self._compare("events not fed", sorted(missing)[:5], [])
        self._compare("events fed", len(seen), len(expected))

    def _resend(self, accounts: Sequence[int]) -> None:
        """What is sent again is known, every event of it."""
        for account in accounts:
            events = self.expected.events(account, RESEND_EVENTS, self._random)
            result = self._client.ingest(events)
            what = f"{len(events)} events of {account_name(account)} sent again"
            self._compare(what, result.duplicate, len(events))
