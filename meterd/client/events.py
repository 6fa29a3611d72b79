"""The event as an application writes it, and the identity it gets.

An event gets its time and its id when it is made, once: every attempt to send it, by whichever
process, then carries the same identity, and the node counts it once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from meterd.client.times import exact_value, to_nanoseconds
from meterd.protocol.body import text_bytes
from meterd.protocol.event_columns import OPERATIONS
from meterd.protocol.limits import I64_MAX, I64_MIN

# The RFC's variant: two bits are fixed, two are random.
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def make_id(now_ns: int) -> str:
    """Make a UUIDv7 (RFC 9562): 48 bits of milliseconds, the version, then 74 random bits."""
    time_text = f"{now_ns // 1_000_000 & 0xFFFF_FFFF_FFFF:012x}"
    noise = os.urandom(10).hex()
    return (
        f"{time_text[:8]}-{time_text[8:]}-7{noise[:3]}"
        f"-{_VARIANT[noise[3]]}{noise[4:7]}-{noise[7:19]}"
    )


class Event:
    """One usage event: who used how much of what, when. Never changes once made."""

    __slots__ = ("account", "id", "metric", "operation", "properties", "timestamp", "value")

    def __init__(
        self,
        account: str | int,
        metric: str,
        value: int | str | Decimal = 1,
        timestamp: int | datetime | str | None = None,
        id: str | None = None,
        operation: str = "none",
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Make an event; without `timestamp` it happened now, without `id` it gets a new one.

        Raises TypeError or ValueError when a field is of a type that cannot be sent, a float value
        among them, or holds what cannot: it would take the events with it that are sent together.
        What only the node knows (a metric's decimals, the time limits) is answered by the node,
        event by event.
        """
        if type(account) is not str:
            account = account_text(account)
        if operation not in OPERATIONS:
            raise ValueError(f"operation {operation!r} is none of {', '.join(OPERATIONS)}")
        if properties:
            check_properties(properties)
        if timestamp is None or id is None:
            now = time.time_ns()
            timestamp = now if timestamp is None else timestamp
            id = make_id(now) if id is None else id
        if type(timestamp) is not int:
            timestamp = to_nanoseconds(timestamp)
        if type(metric) is not str or type(id) is not str:
            raise TypeError(f"metric {metric!r} or id {id!r} is not text")
        if not I64_MIN <= timestamp <= I64_MAX:
            raise ValueError(f"timestamp {timestamp} lies outside the years 1678 to 2262")
        self.account: str = account
        self.metric = metric
        self.value: int | str = value if type(value) is int else exact_value(value)
        # Nearly all are ASCII, and millions are made: one question for all of them is the cheapest.
        if not (account.isascii() and metric.isascii() and id.isascii()):
            for text in (account, metric, id):
                check_text(text)
        if type(self.value) is str and not self.value.isascii():
            check_text(self.value)
        self.timestamp: int = timestamp
        self.id: str = id
        self.operation = operation
        self.properties: Mapping[str, str] = properties or {}

    def as_tuple(self) -> tuple[object, ...]:
        """Give all fields, in the order of the constructor."""
        return tuple(getattr(self, name) for name in EVENT_FIELDS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and self.as_tuple() == other.as_tuple()

    def __hash__(self) -> int:
        return hash((self.account, self.id))

    def __repr__(self) -> str:
        fields = zip(EVENT_FIELDS, self.as_tuple(), strict=True)
        return f"Event({', '.join(f'{name}={value!r}' for name, value in fields)})"


EVENT_FIELDS = ("account", "metric", "value", "timestamp", "id", "operation", "properties")


def account_text(account: object) -> str:
    """Give an account as text: an integer means its decimal text."""
    if isinstance(account, str):
        return account
    if isinstance(account, int) and not isinstance(account, bool):
        return str(account)
    raise TypeError(f"account {account!r} is neither text nor an integer")


def check_properties(properties: Mapping[str, str]) -> None:
    """Raise TypeError unless all keys and values are text, ValueError unless it can be sent."""
    for key, value in properties.items():
        if type(key) is not str or type(value) is not str:
            raise TypeError(f"property {key!r}={value!r}: keys and values are text")
        if not (key.isascii() and value.isascii()):
            check_text(key)
            check_text(value)


def check_text(text: str) -> None:
    """Raise ValueError for text with half a character, of which there is no UTF-8."""
    try:
        text_bytes(text)
    except UnicodeEncodeError:
        raise ValueError(f"{text!r:.80} holds half a character") from None
