"""Lists the kinds of request, who serves each, and checks the bodies of all but ingest.

`KINDS` is the one table: the router takes from it where a request goes, the actors which fields a
body may have, and docs/PROTOCOL.md is checked against it. Ingest bodies have a module of their own
(`columns`), because they are not checked field by field.

Invariants:
  * `check_request` returns every field of the kind, defaults filled in, or raises: nothing behind
    it looks at what a client sent again;
  * an unknown key is an error that names the nearest known one, never silently dropped: a
    misspelt filter would change an invoice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from meterd.protocol import fields, limits
from meterd.protocol.body import Bytes, open_body, unknown_name, unpack
from meterd.protocol.errors import BadRequest, RemoteProtocolError
from meterd.protocol.metric import CONTENT_KEYS, MetricDefinition, refuse_uncomputed

Actor = Literal[
    "ingest", "metrics", "query", "replication", "retention_sweeper", "router", "usage"
]
Check = Callable[[Any], Any]

# What these answer holds for their own node alone.
ABOUT_THEMSELVES: tuple[Actor, ...] = ("metrics", "replication", "retention_sweeper")
OF_NODE = ("checkpoint", "clock_accept", "status")  # and what these requests are about
# Of these the same again is one job more.
JOB_STARTERS = ("backup_create", "compact", "wal_archive")

SORTS = ("account", "usage")
CONSISTENCIES = ("exact", "local")
BACKUP_TYPES = ("full", "incr")
BACKUP_PROOFS = ("manifest", "checksum", "replay", "drill")
WINDOWS = ("hour", "day", "week", "month")
REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a body; nil means the default."""

    check: Check
    default: Any = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table of kinds."""

    name: str
    actor: Actor
    meaning: str
    fields: Mapping[str, Field] = field(default_factory=dict)

    @property
    def is_of_node(self) -> bool:
        """Is it about the node that is asked, so that another one's answer would be wrong?"""
        return self.actor in ABOUT_THEMSELVES or self.name in OF_NODE

    @property
    def starts_job(self) -> bool:
        """Does it begin a job, so that who hears nothing must not send it again?"""
        return self.name in JOB_STARTERS


def _account(default: Any = REQUIRED) -> dict[str, Field]:
    return {"account": Field(fields.account, default)}


def _metric(default: Any = REQUIRED) -> dict[str, Field]:
    return {"metric": Field(partial(fields.metric_code, where="metric"), default)}


def _code() -> dict[str, Field]:
    return {"code": Field(partial(fields.metric_code, where="code"), REQUIRED)}


def _flag(name: str) -> dict[str, Field]:
    return {name: Field(partial(fields.boolean, where=name), False)}


BOUNDS = {
    "start": Field(partial(fields.nanoseconds, where="start")),
    "end": Field(partial(fields.nanoseconds, where="end")),
}
RANGE = {"period": Field(fields.period_name)} | BOUNDS
PAGE = {
    "limit": Field(fields.page_size, limits.PAGE_SIZE_DEFAULT),
    "after": Field(fields.cursor),
}
FILTERS = {"filters": Field(fields.filters, {})}
USAGE = {
    "group_by": Field(partial(fields.property_keys, where="group_by"), ()),
    "window": Field(partial(fields.one_of, known=WINDOWS, where="window")),
    "timezone": Field(partial(fields.timezone, where="timezone")),
}
SORT = {"sort": Field(partial(fields.one_of, known=SORTS, where="sort"), "account")}
TELEMETRY_FILTER = Field(
    partial(fields.text, size_max=limits.TELEMETRY_FILTER_SIZE_MAX, where="filter"), ""
)
CONSISTENCY = {
    "consistency": Field(
        partial(fields.one_of, known=CONSISTENCIES, where="consistency"), "exact"
    )
}
DAYS = {
    "days": Field(
        partial(fields.integer, low=1, high=limits.RETENTION_DAYS_MAX, where="days"), REQUIRED
    )
}
PARTITIONS = {"partitions": Field(fields.partitions)}
COUNT = partial(fields.integer, low=0, high=limits.I64_MAX)
REPORT = {
    "proof": Field(partial(fields.one_of, known=BACKUP_PROOFS, where="proof"), REQUIRED),
    "good": Field(partial(fields.boolean, where="good"), REQUIRED),
} | {name: Field(partial(COUNT, where=name)) for name in ("present", "broken", "rto_ms", "rpo_ms")}
JOB = {"id": Field(partial(fields.integer, low=0, high=limits.I64_MAX, where="id"), REQUIRED)}
NODE_STATES = ("learner", "voter", "drained", "removed")
NODE = {"node": Field(partial(fields.integer, low=1, high=limits.NODE_MAX, where="node"), REQUIRED)}
DEFINITION = {name: Field(lambda raw: raw) for name in CONTENT_KEYS}

_KINDS = (
    Kind("hello", "router", "says who the node is and which limits it has"),
    Kind("map", "router", "gives the partition map"),
    Kind("ingest", "ingest", "stores events, each exactly once"),
    Kind(
        "metric_put",
        "ingest",
        "registers a metric, or with replace a new version of one",
        DEFINITION | _flag("replace"),
    ),
    Kind("metric_delete", "ingest", "deletes a metric; its events stay", _code()),
    Kind(
        "account_erase",
        "ingest",
        "erases what an account has had so far; its ids stay used",
        _account() | _flag("subtree") | {"id": Field(fields.command_id)},
    ),
    Kind(
        "balance_import",
        "ingest",
        "brings usage of accounts from another system, once for each import id",
        {"id": Field(fields.command_id, REQUIRED), "balances": Field(fields.balances, REQUIRED)},
    ),
    Kind(
        "node_add",
        "ingest",
        "takes a node into the cluster, or gives its directory the incarnation that waits for it",
        NODE
        | {
            "peer_address": Field(partial(fields.address, where="peer_address"), REQUIRED),
            "client_address": Field(partial(fields.address, where="client_address"), REQUIRED),
            "directory": Field(
                partial(fields.text, size_max=limits.DIRECTORY_ID_SIZE_MAX, where="directory"), ""
            ),
        },
    ),
    Kind("node_recover", "ingest", "lets a node whose directory is lost come back", NODE),
    Kind(
        "node_state",
        "ingest",
        "makes a node learner, voter, drained or removed",
        NODE
        | {"state": Field(partial(fields.one_of, known=NODE_STATES, where="state"), REQUIRED)},
    ),
    Kind(
        "plan_move",
        "ingest",
        "changes who is to have replicas of groups, and who is to lead them",
        {"moves": Field(fields.moves, REQUIRED)},
    ),
    Kind("metric_list", "usage", "lists the registered metrics", CONSISTENCY),
    Kind("metric_show", "usage", "gives all versions of a metric", _code() | CONSISTENCY),
    Kind(
        "usage",
        "usage",
        "says how much an account used of a metric in a range",
        _account() | _metric() | RANGE | FILTERS | USAGE | _flag("subtree") | CONSISTENCY,
    ),
    Kind(
        "accounts",
        "usage",
        "gives the usage of every account of a metric, in pages",
        _metric() | RANGE | FILTERS | SORT | PAGE | CONSISTENCY | PARTITIONS,
    ),
    Kind(
        "events",
        "usage",
        "lists the stored events of an account, in pages",
        _account() | BOUNDS | _metric(None) | PAGE | _flag("subtree") | CONSISTENCY,
    ),
    Kind(
        "feed",
        "usage",
        "gives stored events in log order after a cursor",
        _account(None) | PAGE | CONSISTENCY | PARTITIONS | {"after": Field(fields.feed_cursor)},
    ),
    Kind("rejected", "retention_sweeper", "lists refused events, newest first", PAGE),
    Kind("checkpoint", "usage", "saves a checkpoint now and answers when it is durable"),
    Kind("retention_show", "retention_sweeper", "says how long events are kept, and what is past"),
    Kind("retention_set", "usage", "changes for how many days events are kept", DAYS),
    Kind("clock_accept", "usage", "believes the node's clock, which has jumped, and expires by it"),
    Kind(
        "retention_run",
        "retention_sweeper",
        "deletes now what is past the retention, or says what would be",
        _flag("dry_run"),
    ),
    Kind(
        "wal_status",
        "retention_sweeper",
        "says which log files there are and what holds them",
        _flag("holders"),
    ),
    Kind("wal_archive", "retention_sweeper", "starts a job that archives what waits"),
    Kind(
        "backup_create",
        "retention_sweeper",
        "begins to make a backup, as a job",
        {
            "to": Field(
                partial(fields.text, size_max=limits.TARGET_SIZE_MAX, where="to"), REQUIRED
            ),
            "type": Field(partial(fields.one_of, known=BACKUP_TYPES, where="type"), "full"),
        },
    ),
    Kind(
        "backup_hold",
        "retention_sweeper",
        "lets no file be deleted for a while",
        {
            "seconds": Field(
                partial(fields.integer, low=1, high=limits.HOLD_SECONDS_MAX, where="seconds"), 3_600
            )
        },
    ),
    Kind("backup_release", "retention_sweeper", "ends that"),
    Kind(
        "backup_report",
        "retention_sweeper",
        "says how backups were proved, for telemetry",
        REPORT,
    ),
    Kind(
        "compact",
        "retention_sweeper",
        "starts a job that merges small segments",
        _flag("aggressive"),
    ),
    Kind("compact_status", "retention_sweeper", "says how many segments there are and wait"),
    Kind("job_list", "retention_sweeper", "lists the jobs, the newest first"),
    Kind("job_show", "retention_sweeper", "says how far a job is, or what became of it", JOB),
    Kind("job_cancel", "retention_sweeper", "cancels a job", JOB),
    Kind("disk_status", "retention_sweeper", "says what uses the disk and when it will be full"),
    Kind("disk_free_reserve", "retention_sweeper", "gives the space kept in reserve back"),
    Kind(
        "cluster_status",
        "replication",
        "says how the node's groups are, and its links to other nodes",
    ),
    Kind(
        "leader_transfer",
        "replication",
        "lets another node lead groups that this node leads",
        {
            "groups": Field(
                partial(
                    fields.numbers,
                    low=0,
                    high=limits.PARTITION_COUNT,
                    count=limits.PARTITION_COUNT + 1,
                    where="groups",
                ),
                REQUIRED,
            ),
            # 0: whoever has most.
            "node": Field(partial(fields.integer, low=0, high=limits.NODE_MAX, where="node"), 0),
        },
    ),
    Kind("status", "usage", "describes the node, its actors and its log"),
    Kind("health", "metrics", "says whether the node can do its work"),
    Kind("metrics", "metrics", "gives the node's telemetry as text", {"filter": TELEMETRY_FILTER}),
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}


def kind_of(name: str) -> Kind:
    """Return the row of a kind.

    Raises RemoteProtocolError naming the nearest known kind.
    """
    kind = KINDS.get(name)
    if kind is None:
        raise RemoteProtocolError("unknown_kind", unknown_name([name], KINDS, "kind"))
    return kind


def check_request(name: str, body: Bytes, lz4_size: int | None = None) -> dict[str, Any]:
    """Return all fields of a request's body, checked, with defaults filled in.

    `metric_put` gives {"definition": MetricDefinition, "replace": bool}.

    Raises RemoteProtocolError when the bytes are no map, Rejected when a field is wrong.
    """
    kind = kind_of(name)
    raw = unpack(open_body(body, lz4_size))
    if type(raw) is not dict:
        raise RemoteProtocolError("malformed", "the body is not a map")
    if name == "metric_put":
        refuse_uncomputed(raw.get("aggregation"))  # before its own keys, which nobody knows yet
    if not raw.keys() <= kind.fields.keys():
        raise BadRequest(unknown_name(raw, kind.fields, f"{name}: key"))
    checked: dict[str, Any] = {}
    for key, row in kind.fields.items():
        value = raw.get(key)
        if value is not None:
            checked[key] = row.check(value)
            continue
        default = row.default
        if default is REQUIRED:
            raise BadRequest(f"{key}: missing")
        checked[key] = dict(default) if type(default) is dict else default
    if "start" in checked:
        _check_range(checked)
    return _definition(checked) if name == "metric_put" else checked


def _check_range(checked: dict[str, Any]) -> None:
    """Make sure that there is one range; usage of no range at all means the current period."""
    start, end = checked["start"], checked["end"]
    if start is not None and end is not None and start >= end:
        raise BadRequest("end: not after start")
    if "period" not in checked:
        return
    if (start is None) != (end is None):
        raise BadRequest("start and end go together")
    if checked["period"] is None:
        checked["period"] = "current" if start is None else None
    elif start is not None:
        raise BadRequest("period: either period, or start and end")


def _definition(checked: dict[str, Any]) -> dict[str, Any]:
    content = {key: checked[key] for key in CONTENT_KEYS}
    return {
        "definition": MetricDefinition.from_map(content),
        "replace": checked["replace"],
    }
