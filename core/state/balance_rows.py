"""Turns the balances of a request into rows of a command, checked against the registry.

A balance must bring what its metric's aggregation asks for; what it does not ask for counts as 0,
because no other aggregation is ever answered from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.entries import member_of_text, member_of_value
from meterd.core.kernels.hashing import partition_of
from meterd.core.kernels.stage import content_of_bytes
from meterd.core.state.registry import MetricEntry, Registry
from meterd.protocol import fields
from meterd.protocol.body import unknown_name
from meterd.protocol.decimal_text import DECIMAL_TEXT
from meterd.protocol.errors import BadRequest, UnknownMetric
from meterd.protocol.limits import DECIMAL_TEXT_SIZE_MAX, I64_MAX, PROPERTY_VALUE_SIZE_MAX

KEYS: Final = (
    "account",
    "metric",
    "dimensions",
    "at",
    "count",
    "sum",
    "min",
    "max",
    "latest",
    "first",
    "members",
    "present",
)
# Which amounts an aggregation is answered from.
NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "sum": ("sum",),
    "avg": ("sum",),
    "min": ("min",),
    "max": ("max",),
    "latest": ("latest",),
    "first": ("first",),
    "unique": ("members",),
}
MEMBERS_MAX: Final = 100_000
# Only what lies in one partition is ever added up: all the balances there may be (`BALANCES_MAX`,
# core/state/balances.py) and all events, which leave half of the 63 or 127 bits to these.
COUNT_MAX: Final = 1 << 45
SUM_MAX: Final = 1 << 109

Row = list[Any]


def import_commands(
    import_id: str, balances: Sequence[Any], registry: Registry, key: NDArray[np.uint64]
) -> dict[int, dict[str, Any]]:
    """Return the commands of the log that an import is, by partition.

    All have the digest of the whole, so what one of them says of the import's id holds for all.
    Raises BadRequest, UnknownMetric.
    """
    rows = balance_rows(balances, registry, key)
    packed = np.frombuffer(msgpack.packb([import_id, sorted(rows.items())]), np.uint8)
    digest = np.array(content_of_bytes(packed), np.uint64).tobytes()
    return {
        partition: {
            "op": "balance_import",
            "id": import_id,
            "digest": digest,
            "count": len(balances),
            "rows": of_partition,
        }
        for partition, of_partition in rows.items()
    }


def balance_rows(
    balances: Sequence[Any], registry: Registry, key: NDArray[np.uint64]
) -> dict[int, list[Row]]:
    """Return the rows of a command for each partition: account, metric number, dimension tuple,
    moment, [count, sum (16 bytes), min, max, latest, first], members, present (16 bytes each).

    Raises BadRequest, UnknownMetric.
    """
    rows: dict[int, list[Row]] = {}
    for place, raw in enumerate(balances):
        try:
            row = _row(raw, registry, key)
        except BadRequest as error:
            raise BadRequest(f"balances[{place}]: {error.message}") from None
        text = np.frombuffer(row[0].encode(), np.uint8)
        rows.setdefault(int(partition_of(text, 0, len(text))), []).append(row)
    return rows


def _row(raw: Any, registry: Registry, key: NDArray[np.uint64]) -> Row:
    if not isinstance(raw, Mapping):
        raise BadRequest("not a map")
    if not raw.keys() <= set(KEYS):
        raise BadRequest(unknown_name(raw, KEYS, "key"))
    missing = [name for name in ("account", "metric", "at", "count") if raw.get(name) is None]
    if missing:
        raise BadRequest(f"{missing[0]}: missing")
    account = fields.account(raw["account"])
    code = fields.metric_code(raw["metric"], "metric")
    at = fields.nanoseconds(raw["at"], "at")
    entry = registry.select(code, at)
    if entry is None:
        raise UnknownMetric(f"no metric {code} is registered")
    for name in NEEDED.get(entry.definition.aggregation, ()):
        if raw.get(name) is None and not (name == "members" and raw.get("present") is not None):
            raise BadRequest(f"{name}: missing; {entry.definition.aggregation} asks for it")
    decimals = entry.definition.decimals
    counted = [
        fields.integer(raw["count"], int(raw.get("present") is None), COUNT_MAX, "count"),
        _amount(raw, "sum", decimals, SUM_MAX).to_bytes(16, "little", signed=True),
        *(_amount(raw, name, decimals, I64_MAX) for name in ("min", "max", "latest", "first")),
    ]
    members = [_members(raw, name, entry, key) for name in ("members", "present")]
    if members[0] and not counted[0]:
        raise BadRequest("count: at least 1, for there are members")
    return [account, entry.number, _dimensions(raw, entry), at, counted, *members]


def _amount(raw: Mapping[str, Any], name: str, decimals: int, limit: int) -> int:
    """Return an amount in units of the metric."""
    value = raw.get(name)
    if value is None:
        return 0
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise BadRequest(f"{name}: decimal text")
    try:
        units = parse_units(value, decimals)
    except ValueError:
        reason = f"{value!r:.60} is no number of at most {decimals} decimals"
        raise BadRequest(f"{name}: {reason}") from None
    if not -limit - 1 <= units <= limit:
        raise BadRequest(f"{name}: too large")
    return units


def parse_units(text: str, decimals: int) -> int:
    """Return decimal text as units of 10^-decimals.  Raises ValueError when it is none."""
    match = DECIMAL_TEXT.fullmatch(text.encode()) if len(text) <= DECIMAL_TEXT_SIZE_MAX else None
    if match is None:
        raise ValueError(text)
    fraction = (match[2] or b"").rstrip(b"0")
    if len(fraction) > decimals:
        raise ValueError(text)
    return int(match[1] + fraction.ljust(decimals, b"0"))


def _dimensions(raw: Mapping[str, Any], entry: MetricEntry) -> bytes:
    """Return the dimension tuple (kernels/entries.py, write_dimensions)."""
    given = raw.get("dimensions") or {}
    declared = entry.definition.dimensions
    if not isinstance(given, Mapping) or not given.keys() <= set(declared):
        raise BadRequest(f"dimensions: a map of dimensions of {entry.code}")
    packed = bytearray()
    for name in sorted(declared, key=str.encode):
        value = given.get(name)
        if value is None:
            packed.append(0)
            continue
        text = fields.text(value, PROPERTY_VALUE_SIZE_MAX, "dimensions").encode()
        packed += bytes([len(text) + 1]) if len(text) < 254 else bytes([255, len(text) - 254])
        packed += text
    return bytes(packed)


def _members(
    raw: Mapping[str, Any], name: str, entry: MetricEntry, key: NDArray[np.uint64]
) -> bytes:
    """Return the hashes of members, one after another."""
    members = raw.get(name)
    if members is None:
        return b""
    if entry.definition.aggregation != "unique":
        raise BadRequest(f"{name}: {entry.code} does not count members")
    if not isinstance(members, list | tuple) or len(members) > MEMBERS_MAX:
        raise BadRequest(f"{name}: a list of at most {MEMBERS_MAX} members")
    hashes = [_member(member, name, entry, key) for member in members]
    return np.array(hashes, np.uint64).tobytes()


def _member(member: Any, name: str, entry: MetricEntry, key: NDArray[np.uint64]) -> Any:
    decimals = entry.definition.decimals
    if entry.definition.unique_on is None:
        units = _amount({name: member}, name, decimals, I64_MAX)
        return member_of_value(key[0], key[1], units, decimals)
    text = fields.text(member, PROPERTY_VALUE_SIZE_MAX, name).encode()
    return member_of_text(key[0], key[1], np.frombuffer(text, np.uint8), 0, len(text))
