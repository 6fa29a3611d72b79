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
from meterd.protocol.event_columns import OPERATIONS


def make_id(now_ns: int) -> str:
    """Make a UUIDv7 (RFC 9562): 48 bits of milliseconds, then 74 random bits."""
    random_bits = int.from_bytes(os.urandom(10), "big")
    number = ((now_ns // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80) | random_bits
    number = number & ~(0xF << 76) | (0x7 << 76)  # version 7
    number = number & ~(0x3 << 62) | (0x2 << 62)  # the RFC's variant
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


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
        among them. What only the node knows (a metric's decimals, the time limits) is answered by
        the node, event by event.
        """
        if type(account) is not str:
            account = account_text(account)
        if operation not in OPERATIONS:
            raise ValueError(f"operation {operation!r} is none of {', '.join(OPERATIONS)}")
        for text in (metric, *(() if id is None else (id,))):
            if type(text) is not str:
                raise TypeError(f"{text!r} is not text: metric and id are")
        if properties:
            check_properties(properties)
        if timestamp is None:
            timestamp = time.time_ns()
        elif type(timestamp) is not int:
            timestamp = to_nanoseconds(timestamp)
        self.account: str = account
        self.metric = metric
        self.value: int | str = value if type(value) is int else exact_value(value)
        self.timestamp: int = timestamp
        self.id: str = make_id(time.time_ns()) if id is None else id
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
    """Raise TypeError unless all keys and values are text."""
    for key, value in properties.items():
        if type(key) is not str or type(value) is not str:
            raise TypeError(f"property {key!r}={value!r}: keys and values are text")
