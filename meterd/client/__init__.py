"""The Python client library: docs/CLIENT.md.

Names listed here are the public ones; the modules beside this one may change.
"""

from meterd.client.asynchronous import AsyncClient, AsyncPages
from meterd.client.blocking import Client, Pages
from meterd.client.events import Event
from meterd.client.partitions import partition_of
from meterd.client.producer import Producer, ProducerFailed
from meterd.client.questions import MetricOutcome
from meterd.client.results import (
    AccountUsage,
    Group,
    IngestResult,
    IngestUndecided,
    Item,
    Point,
    RejectedEvent,
    StoredEvent,
    Usage,
)
from meterd.protocol.errors import (
    BadRequest,
    DeadlineExceeded,
    DiskStop,
    Internal,
    LocalProtocolError,
    MeterdError,
    MetricConflict,
    MetricVersionsDiffer,
    NotFound,
    NotLeader,
    Overloaded,
    RangeExpired,
    Refused,
    Rejected,
    RemoteProtocolError,
    Restarting,
    ShuttingDown,
    Starting,
    TooManyMetrics,
    UnknownMetric,
    Unreachable,
    UnsupportedAggregation,
    UnsupportedThresholds,
    VersionMismatch,
)

__all__ = [
    "AccountUsage",
    "AsyncClient",
    "AsyncPages",
    "BadRequest",
    "Client",
    "DeadlineExceeded",
    "DiskStop",
    "Event",
    "Group",
    "IngestResult",
    "IngestUndecided",
    "Internal",
    "Item",
    "LocalProtocolError",
    "MeterdError",
    "MetricConflict",
    "MetricOutcome",
    "MetricVersionsDiffer",
    "NotFound",
    "NotLeader",
    "Overloaded",
    "Pages",
    "Point",
    "Producer",
    "ProducerFailed",
    "RangeExpired",
    "Refused",
    "Rejected",
    "RejectedEvent",
    "RemoteProtocolError",
    "Restarting",
    "ShuttingDown",
    "Starting",
    "StoredEvent",
    "TooManyMetrics",
    "UnknownMetric",
    "Unreachable",
    "UnsupportedAggregation",
    "UnsupportedThresholds",
    "Usage",
    "VersionMismatch",
    "partition_of",
]
