"""Says what a metric definition is, and checks one that somebody sends.

Invariants of a MetricDefinition: the code matches CODE; dimensions are distinct property keys;
`unique_on` is set for no aggregation but unique; a period has the fields of its kind and no other.
Whether the time zone exists is for `core` to know: here it is only text of the right shape.
"""

from dataclasses import dataclass, replace
from typing import Self

from meterd.protocol import limits
from meterd.protocol.errors import BadRequest, UnsupportedAggregation, UnsupportedThresholds
from meterd.protocol.fields import (
    boolean,
    default,
    integer,
    known_map,
    metric_code,
    one_of,
    property_key,
    property_keys,
    text,
    timezone,
)

AGGREGATIONS = ("count", "sum", "min", "max", "avg", "latest", "first", "unique")
AGGREGATIONS_KNOWN_ONLY = ("time_weighted", "percentile")
PERIOD_KINDS = ("hour", "day", "week", "month", "quarter", "year", "fixed")
# Values come in millionths unless told otherwise.
DECIMALS_DEFAULT = 6
# There are no parts of one, and many of them.
BYTES = "bytes"

PERIOD_KEYS = ("kind", "anchor_day", "duration", "epoch", "timezone")
# What the sender chooses, and what the node adds.
CONTENT_KEYS = (
    "code",
    "aggregation",
    "decimals",
    "unit",
    "description",
    "dimensions",
    "unique_on",
    "period",
    "thresholds",
)
VERSION_KEYS = ("version", "effective_from", "deleted")


@dataclass(frozen=True, slots=True)
class Period:
    """What "current" means for a metric."""

    kind: str = "month"
    anchor_day: int = 1  # month only: its first day, 1-31; the last day where it is shorter
    duration: int = 0  # fixed only: seconds
    epoch: int = 0  # fixed only: UTC ns of some period's start
    timezone: str = "UTC"

    @classmethod
    def from_map(cls, raw: object) -> Self:
        """Check a period as it is sent; text means a period of that kind.

        Raises BadRequest naming the field.
        """
        if isinstance(raw, str):
            raw = {"kind": raw}
        fields = known_map(raw, "period", PERIOD_KEYS)
        kind = one_of(fields.get("kind", "month"), PERIOD_KINDS, "period.kind")
        for key, its_kind in (("anchor_day", "month"), ("duration", "fixed"), ("epoch", "fixed")):
            if fields.get(key) is not None and kind != its_kind:
                raise BadRequest(f"period.{key}: only a period of kind {its_kind} has one")
        duration = 0
        if kind == "fixed":
            duration = integer(
                fields.get("duration"),
                limits.PERIOD_SECONDS_MIN,
                limits.PERIOD_SECONDS_MAX,
                "period.duration",
            )
        return cls(
            kind,
            integer(default(fields.get("anchor_day"), 1), 1, 31, "period.anchor_day"),
            duration,
            integer(
                default(fields.get("epoch"), 0), limits.I64_MIN, limits.I64_MAX, "period.epoch"
            ),
            timezone(default(fields.get("timezone"), "UTC"), "period.timezone"),
        )

    def to_map(self) -> dict[str, object]:
        """Return the fields that a period of this kind has."""
        fields: dict[str, object] = {"kind": self.kind}
        if self.kind == "month":
            fields["anchor_day"] = self.anchor_day
        if self.kind == "fixed":
            fields["duration"], fields["epoch"] = self.duration, self.epoch
        return fields | {"timezone": self.timezone}


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """One version of what is counted under a code."""

    code: str
    aggregation: str
    decimals: int
    unit: str = ""
    description: str = ""
    dimensions: tuple[str, ...] = ()
    unique_on: str | None = None
    period: Period = Period()
    version: int = 0  # 1, 2, 3 … once registered
    effective_from: int = limits.I64_MIN  # UTC ns; events from here on follow this version
    deleted: bool = False

    @classmethod
    def from_map(cls, raw: object) -> Self:
        """Check a definition as it is sent or stored, and fill in what it leaves out.

        Raises BadRequest naming the field, UnsupportedAggregation or UnsupportedThresholds.
        """
        fields = known_map(raw, "metric", CONTENT_KEYS + VERSION_KEYS)
        aggregation = _aggregation(fields.get("aggregation"))
        if fields.get("thresholds") not in (None, [], ()):
            raise UnsupportedThresholds("thresholds are not watched by this version")
        unique_on = fields.get("unique_on")
        if unique_on is not None and aggregation != "unique":
            raise BadRequest("unique_on: only the aggregation unique has one")
        unit = text(default(fields.get("unit"), ""), limits.UNIT_SIZE_MAX, "unit")
        return cls(
            metric_code(fields.get("code"), "code"),
            aggregation,
            integer(
                default(fields.get("decimals"), 0 if unit == BYTES else DECIMALS_DEFAULT),
                0,
                limits.DECIMALS_MAX,
                "decimals",
            ),
            unit,
            text(
                default(fields.get("description"), ""),
                limits.DESCRIPTION_SIZE_MAX,
                "description",
            ),
            property_keys(default(fields.get("dimensions"), []), "dimensions"),
            None if unique_on is None else property_key(unique_on, "unique_on"),
            Period.from_map(default(fields.get("period"), {})),
            integer(default(fields.get("version"), 0), 0, 2**32 - 1, "version"),
            integer(
                default(fields.get("effective_from"), limits.I64_MIN),
                limits.I64_MIN,
                limits.I64_MAX,
                "effective_from",
            ),
            boolean(default(fields.get("deleted"), False), "deleted"),
        )

    def to_map(self) -> dict[str, object]:
        """Return the definition as it is sent and stored."""
        return {
            "code": self.code,
            "aggregation": self.aggregation,
            "decimals": self.decimals,
            "unit": self.unit,
            "description": self.description,
            "dimensions": list(self.dimensions),
            "unique_on": self.unique_on,
            "period": self.period.to_map(),
            "thresholds": [],
            "version": self.version,
            "effective_from": self.effective_from,
            "deleted": self.deleted,
        }

    def same_content(self, other: "MetricDefinition") -> bool:
        """Say whether registering one where the other is registered changes nothing."""
        return self.unregistered() == other.unregistered()

    def unregistered(self) -> "MetricDefinition":
        """Return the definition without what the node added."""
        return replace(self, version=0, effective_from=limits.I64_MIN, deleted=False)


def refuse_uncomputed(aggregation: object) -> None:
    """Raise UnsupportedAggregation for one that is known and not computed."""
    if aggregation in AGGREGATIONS_KNOWN_ONLY:
        raise UnsupportedAggregation(f"aggregation: {aggregation} is not computed by this version")


def _aggregation(raw: object) -> str:
    refuse_uncomputed(raw)
    if raw is None:
        raise BadRequest(f"aggregation: missing; one of {', '.join(AGGREGATIONS)}")
    return one_of(raw, AGGREGATIONS, "aggregation")
