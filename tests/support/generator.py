"""Makes usage events that look like a real customer base, the same ones for the same seed.

Accounts follow a Zipf law; some are paths, some are not ASCII.  There is a metric for every
aggregation, three properties that are sometimes absent, and everything that goes wrong in real
life in known shares: resends, resends with other content, the same id under another account, late
events, negative values, unknown metrics, values that do not fit, clocks that are days off.  Nothing
is random but the seed, and `now` is a parameter, so a run can be repeated to the byte.

Rows are drawn as numpy columns a chunk at a time and written through tables of ready-made JSON, so
a million events take seconds.  What is true about them is not decided here: ask `model.Model`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

import numpy as np

from tests.support.model import Metric
from tests.support.periods import DAY, SECOND, Period

CHUNK_SIZE = 50_000
SPAN_DAYS = 60
JITTER = 5 * SECOND
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "region": ("eu-central-1", "eu-west-1", "us-east-1", "ap-south-1", "sa-é"),
    "plan": ("free", "pro", "enterprise"),
    "model": ("small", "medium", "large", "großes-Modell"),
}
ABSENT_SHARE = 0.2  # of each property
USER_SHARE = 0.33
REPEAT_SHARE = 0.01
CONFLICT_SHARE = 0.01
LATE_SHARE = 0.02
NEGATIVE_SHARE = 0.03
UNKNOWN_METRIC_SHARE = 0.001
BAD_VALUE_SHARE = 0.001
OFF_CLOCK_SHARE = 0.001  # half of them too old, half too far ahead
SHARED_ID_SHARE = 0.002
FREE_TEXT_ID_SHARE = 0.3
DEFAULT_VALUE_SHARE = 0.2
INTEGER_VALUE_SHARE = 0.4
UNKNOWN_METRIC = "not_registered"
BAD_VALUES = ("0.0000000001", "99999999999999999999", "many", "", "1e3", "NaN")

METRICS = (
    Metric("api_calls", "count", 0, ("region", "plan", "model")),
    Metric("tokens", "sum", 6, ("region", "model"), period=Period("day")),
    Metric("egress.bytes", "sum", 0, ("region",), period=Period("month", anchor_day=31)),
    Metric("spend:usd", "sum", 4, ("plan",), period=Period("month", timezone="Asia/Kolkata")),
    Metric("latency_min", "min", 3, (), period=Period("week")),
    Metric("queue-depth", "max", 0, ("region",), period=Period("hour")),
    Metric("score", "avg", 3, ("model",), period=Period("quarter")),
    Metric("storage", "latest", 2, (), period=Period("month", 15, timezone="America/New_York")),
    Metric("first_seen", "first", 6, ("plan",), period=Period("year")),
    Metric("buckets", "unique", 0, ("region",), period=Period("fixed", duration=7200)),
    Metric("seats", "unique", 0, ("plan",), unique_on="user"),
    Metric("visitors", "unique", 0, (), unique_on="user", period=Period("day")),
)
SEATS = 10  # position of the metric whose events add and remove


class Row(NamedTuple):
    """One event as positions in the generator's tables; JSON text where it is already made."""

    account: int
    metric: int
    value: str  # JSON: an integer, decimal text, or "" for the default
    timestamp: int
    id: str
    operation: int
    properties: str  # JSON


@dataclass(frozen=True)
class Mix:
    """How big the world of the events is."""

    accounts: int = 10_000
    users: int = 500
    zipf: float = 1.1


class Generator:
    """A seeded source of events that end at `now`; every call to `events` starts afresh."""

    def __init__(self, seed: int, now: int, mix: Mix | None = None) -> None:
        self.seed = seed
        self.now = now
        self.mix = mix or Mix()
        self.metrics = METRICS
        self.codes = [*(metric.code for metric in METRICS), UNKNOWN_METRIC]
        self.accounts = [account_name(number) for number in range(self.mix.accounts)]
        weights = 1.0 / np.arange(1, self.mix.accounts + 1) ** self.mix.zipf
        self.account_shares = np.cumsum(weights / weights.sum())

    def events(self, count: int) -> Iterator[dict[str, Any]]:
        """Yield events as maps with the fields of the contract."""
        for line in self.lines(count):
            yield json.loads(line)

    def write_ndjson(self, file: TextIO, count: int) -> None:
        """Write events one JSON object per line."""
        for first in range(0, count, CHUNK_SIZE):
            file.write("\n".join(self.chunk_lines(first, count)) + "\n")

    def lines(self, count: int) -> Iterator[str]:
        for first in range(0, count, CHUNK_SIZE):
            yield from self.chunk_lines(first, count)

    def chunk_lines(self, first: int, total: int) -> list[str]:
        accounts = [json.dumps(name) for name in self.accounts]
        codes = [json.dumps(code) for code in self.codes]
        operations = ("", ',"operation":"add"', ',"operation":"remove"')
        return [
            f'{{"account":{accounts[row.account]},"metric":{codes[row.metric]},'
            f'"timestamp":{row.timestamp},"id":{row.id}'
            + (f',"value":{row.value}' if row.value else "")
            + (f',"properties":{row.properties}' if row.properties else "")
            + operations[row.operation]
            + "}"
            for row in self.chunk(first, total)
        ]

    def chunk(self, first: int, total: int) -> list[Row]:
        """Rows `first` and on; repeats and conflicts look back within their chunk only."""
        rng = np.random.default_rng([self.seed, first])
        count = min(CHUNK_SIZE, total - first)
        rows = self.fresh_rows(rng, first, self.timestamps(rng, first, count, total))
        again = np.flatnonzero(rng.random(count) < REPEAT_SHARE + CONFLICT_SHARE)
        for place, share, coin in zip(
            again.tolist(), rng.random(len(again)), rng.random(len(again)), strict=True
        ):
            if place == 0:
                continue
            known = rows[int(share * place)]
            rows[place] = known if coin < 0.5 else changed(known, rows[place])
        return rows

    def fresh_rows(self, rng: np.random.Generator, first: int, timestamp: np.ndarray) -> list[Row]:
        count = len(timestamp)
        account = np.searchsorted(self.account_shares, rng.random(count))
        metric = rng.integers(0, len(METRICS), count)
        operation = np.where(metric == SEATS, rng.integers(0, 3, count), 0)
        metric = np.where(rng.random(count) < UNKNOWN_METRIC_SHARE, len(METRICS), metric)
        columns = (
            account.clip(max=self.mix.accounts - 1).tolist(),
            metric.tolist(),
            self.values(rng, metric),
            timestamp.tolist(),
            self.ids(rng, first, timestamp),
            operation.tolist(),
            self.properties(rng, count),
        )
        return list(map(Row._make, zip(*columns, strict=True)))

    def values(self, rng: np.random.Generator, metric: np.ndarray) -> list[str]:
        count = len(metric)
        units = (rng.pareto(1.5, count) * 1000).astype(np.int64)
        units = np.where(rng.random(count) < NEGATIVE_SHARE, -units, units)
        decimals = np.array([*(metric.decimals for metric in METRICS), 0])[metric]
        share = rng.random(count)
        form = (share > DEFAULT_VALUE_SHARE).astype(int) + (
            share > DEFAULT_VALUE_SHARE + INTEGER_VALUE_SHARE
        )
        form = np.where(rng.random(count) < BAD_VALUE_SHARE, 3, form)
        return [
            value_json(*row)
            for row in zip(form.tolist(), units.tolist(), decimals.tolist(), strict=True)
        ]

    def timestamps(
        self, rng: np.random.Generator, first: int, count: int, total: int
    ) -> np.ndarray:
        """Rising towards now with jitter, a few from any time of the span, a few impossible."""
        start = self.now - SPAN_DAYS * DAY
        rising = start + (first + np.arange(count)) * (SPAN_DAYS * DAY // total)
        rising -= rng.integers(0, JITTER, count)
        anywhere = start + rng.integers(0, SPAN_DAYS * DAY, count)
        off = np.where(rng.random(count) < 0.5, self.now - 120 * DAY, self.now + 3 * DAY)
        timestamp = np.where(rng.random(count) < LATE_SHARE, anywhere, rising)
        return np.where(rng.random(count) < OFF_CLOCK_SHARE, off, timestamp)

    def ids(self, rng: np.random.Generator, first: int, timestamp: np.ndarray) -> list[str]:
        count = len(timestamp)
        free_text = (rng.random(count) < FREE_TEXT_ID_SHARE).tolist()
        shared = (rng.random(count) < SHARED_ID_SHARE).tolist()
        bits = rng.integers(0, 2**62, (2, count)).tolist()
        milliseconds = (timestamp // 1_000_000).tolist()
        found = []
        for row in range(count):
            if shared[row]:
                found.append(f'"shared-{bits[0][row] % 50}"')
            elif free_text[row]:
                found.append(f'"req_{first + row}.{bits[0][row]:x}é"')
            else:
                found.append(f'"{uuid7(milliseconds[row], bits[0][row], bits[1][row])}"')
        return found

    def properties(self, rng: np.random.Generator, count: int) -> list[str]:
        """Draw from a table of all combinations, with a user for some."""
        shape = [len(values) + 1 for values in DIMENSIONS.values()]
        picks = []
        for size in shape:
            absent = rng.random(count) < ABSENT_SHARE
            picks.append(np.where(absent, size - 1, rng.integers(0, size - 1, count)))
        user = rng.integers(0, self.mix.users, count)
        users = np.where(rng.random(count) < USER_SHARE, user, self.mix.users)
        combinations = [combination(place, shape) for place in range(int(np.prod(shape)))]
        table = np.ravel_multi_index(picks, shape).tolist()
        return [
            properties_json(combinations[place], user if user < self.mix.users else None)
            for place, user in zip(table, users.tolist(), strict=True)
        ]


def account_name(number: int) -> str:
    if number % 7 == 3:
        return f"acct{number:05d}/team{number % 5}/key"
    if number % 7 == 5:
        return f"acct{number - 2:05d}/team{number % 5}"  # below the same root as the one before
    if number % 31 == 8:
        return f"客户-{number}-größe"
    return f"acct{number:05d}"


def uuid7(milliseconds: int, high: int, low: int) -> str:
    text = f"{milliseconds & 0xFFFFFFFFFFFF:012x}7{high & 0xFFF:03x}{1 << 63 | low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def value_json(form: int, units: int, decimals: int) -> str:
    """Form 0 is the default, 1 an integer, 2 decimal text, 3 something that is refused."""
    if form == 0:
        return ""
    if form == 1:
        return str(units % 100)
    if form == 3:
        return f'"{BAD_VALUES[units % len(BAD_VALUES)]}"'
    if decimals == 0:
        return f'"{units}"'
    digits = f"{abs(units):0{decimals + 1}d}"
    return f'"{"-" if units < 0 else ""}{digits[:-decimals]}.{digits[-decimals:]}"'


def combination(place: int, shape: list[int]) -> str:
    parts = []
    indices = np.unravel_index(place, shape)
    for (key, values), pick in zip(DIMENSIONS.items(), indices, strict=True):
        if pick < len(values):
            parts.append(f'"{key}":"{values[pick]}"')
    return ",".join(parts)


def properties_json(shared: str, user: int | None) -> str:
    parts = [shared] if shared else []
    if user is not None:
        parts.append(f'"user":"user-{user}"')
    return "{" + ",".join(parts) + "}" if parts else ""


def changed(known: Row, other: Row) -> Row:
    """The identity of one row with content that differs in one field."""
    kind = other.timestamp % 3
    if kind == 0:
        return known._replace(value="7" if known.value != "7" else "8")
    if kind == 1:
        return known._replace(timestamp=known.timestamp + 1)
    return known._replace(properties='{"region":"changed"}')
