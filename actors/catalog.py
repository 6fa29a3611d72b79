"""Every number that `/metrics` may show: name, kind, meaning, labels.

A counter exists with 0 from the start for each of its known label values, or the first error would
be invisible to `rate`.  No label ever takes an account: a page must not grow with the customers.
Names here lack the prefix ``billing_``.  A name that is not here is not shown; a test compares
this table with the names that actors use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meterd.protocol.errors import REASONS
from meterd.protocol.messages import KINDS

Kind = Literal["counter", "gauge", "histogram"]

PREFIX = "billing_"
MODES = ("sync", "async")
RESULTS = ("ok", "error")
QUERIES = ("usage", "accounts", "events", "feed", "rejected")
ACTORS = (
    "router",
    "ingest",
    "replication",
    "wal_writer",
    "usage",
    "query",
    "retention_sweeper",
    "metrics",
)


@dataclass(frozen=True)
class Family:
    """One name of telemetry."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    initial: tuple[tuple[str, ...], ...] = ()  # label values that exist from the start


def _counter(name: str, help: str, label: str = "", values: tuple[str, ...] = ()) -> Family:
    return _family(name, "counter", help, label, values)


def _gauge(name: str, help: str, label: str = "", values: tuple[str, ...] = ()) -> Family:
    return _family(name, "gauge", help, label, values)


def _histogram(name: str, help: str, label: str = "", values: tuple[str, ...] = ()) -> Family:
    return _family(name, "histogram", help, label, values)


def _family(name: str, kind: Kind, help: str, label: str, values: tuple[str, ...]) -> Family:
    if not label:
        return Family(name, kind, help, (), ((),) if kind != "gauge" else ())
    return Family(name, kind, help, (label,), tuple((value,) for value in values))


FAMILIES = (
    # requests
    _counter("requests_total", "Requests taken, by kind.", "kind", tuple(KINDS)),
    _counter("requests_refused_total", "Requests answered with an error code.", "code"),
    _gauge("clients_connected", "Connections of clients."),
    _counter(
        "connections_evicted_total",
        "Connections of clients ended for what they sent or held.",
        "reason",
        ("message_size", "memory", "surplus", "malformed", "frames"),
    ),
    _counter("malformed_messages_total", "Messages that follow no protocol, dropped or refused."),
    _counter("answers_undeliverable_total", "Answers to clients that had gone or did not read."),
    _counter(
        "backpressure_replies_total",
        "Requests refused because the node has enough.",
        "reason",
        ("overloaded", "disk_stop"),
    ),
    _gauge("inflight_requests", "Requests taken and not yet answered."),
    _gauge("inflight_bytes", "Bytes of those requests."),
    # events
    _counter("events_received_total", "Events in ingest requests."),
    _counter("events_ingested_total", "Events taken: sync stored, async accepted.", "mode", MODES),
    _counter("events_duplicate_total", "Events that were there already."),
    _counter("events_conflict_total", "Events whose id belongs to an event with other content."),
    _counter("events_rejected_total", "Events refused, by reason.", "reason", REASONS[1:]),
    _counter("events_unknown_total", "Events undecided when their deadline ended."),
    _histogram("ingest_duration_seconds", "From request to answer, ingest.", "mode", MODES),
    # queries
    _counter("queries_total", "Queries answered, by result.", "result", RESULTS),
    _histogram("query_duration_seconds", "From request to answer, queries.", "kind", QUERIES),
    _histogram("query_rows", "Rows read for an answer."),
    # log
    _gauge("wal_offset_bytes", "End of the log: bytes in all log files."),
    _gauge("wal_segments", "Log files."),
    _gauge("wal_size_bytes", "Bytes that the log takes on disk."),
    _counter("wal_appends_total", "Blocks written."),
    _counter("wal_bytes_written_total", "Bytes written to the log."),
    _counter("wal_rotations_total", "Log files that became full."),
    _counter("wal_truncated_bytes_total", "Bytes of torn tails cut off at a start."),
    _counter("wal_write_errors_total", "Writes to the log that failed."),
    _histogram("wal_fsync_duration_seconds", "Time to make a block durable."),
    _histogram("wal_batch_events", "Events in a block."),
    _gauge("wal_recovery_duration_seconds", "Time the last start took to read the log."),
    # state
    _counter("events_applied_total", "Events looked at by the state machine."),
    _gauge("accounts", "Accounts known."),
    _gauge("series", "Series in memory."),
    _gauge("cells", "Totals in memory."),
    _gauge("identities", "Event ids known."),
    _gauge("registered_metrics", "Metrics registered."),
    _gauge("replay_events", "Events replayed by the last start."),
    _gauge("applied_index", "Greatest index applied, summed over all groups."),
    # checkpoints
    _counter("checkpoint_runs_total", "Checkpoints, by result.", "result", RESULTS),
    _gauge("checkpoint_last_success_timestamp_seconds", "When the newest checkpoint was saved."),
    _gauge("checkpoint_bytes", "Size of the newest checkpoint."),
    _histogram("checkpoint_duration_seconds", "Time to save a checkpoint."),
    # retention and disk
    _counter("retention_runs_total", "Looks for expired log files.", "result", RESULTS),
    _counter("retention_segments_deleted_total", "Log files deleted because they expired."),
    _counter("retention_bytes_freed_total", "Bytes of those files."),
    _counter("indexes_written_total", "Indexes written beside full log files."),
    _gauge("disk_free_bytes", "Free space for the data directory.", "path"),
    _gauge("disk_size_bytes", "Size of its file system.", "path"),
    _gauge("disk_inodes_free", "Free inodes of its file system.", "path"),
    _gauge("disk_state", "1 for the state of the disk.", "state", ("ok", "warn", "stop")),
    _counter("disk_write_stops_total", "Times that events were refused for lack of space."),
    # replication
    _counter("view_changes_total", "Partitions that got a new leader."),
    _gauge("replication_lag_ops", "Ops that a peer lacks.", "peer"),
    _gauge("partition_leader", "Partitions that this node leads."),
    # node
    Family(
        "build_info",
        "gauge",
        "What is running.",
        ("version", "python", "libzmq", "storage_version"),
    ),
    Family("node_info", "gauge", "Who is running.", ("node_id", "cluster_id", "incarnation")),
    _gauge("uptime_seconds", "Time since the node started."),
    _gauge("start_timestamp_seconds", "When the node started."),
    _gauge("node_state", "1 for the state of the node.", "state"),
    _gauge("ready", "1 when the node takes such requests.", "for"),
    _gauge("config_last_reload_successful", "1 when the last reload was taken."),
    _gauge("config_last_reload_timestamp_seconds", "When the configuration was last read."),
    _counter("actor_restarts_total", "Restarts of actors that died.", "actor", ACTORS),
    _gauge("actor_ready", "1 when the actor can do its work.", "actor"),
    _counter("actor_cpu_seconds_total", "Processor time of the actor's process.", "actor"),
    _gauge("actor_resident_memory_bytes", "Memory of the actor, shared pages included.", "actor"),
    _gauge("actor_proportional_memory_bytes", "Memory of the actor, its share.", "actor"),
    _counter("telemetry_dropped_total", "Numbers from actors under a name not in this table."),
    _gauge("exporter_scrape_duration_seconds", "Time to make the last page of telemetry."),
)

BY_NAME = {family.name: family for family in FAMILIES}
