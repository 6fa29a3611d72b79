"""Every number that `/metrics` may show: name, kind, meaning, labels.

A counter exists with 0 from the start for each of its known label values, or the first error would
be invisible to `rate`.  No label ever takes an account: a page must not grow with the customers.
Names here lack the prefix ``billing_``.  A name that is not here is not shown; a test compares
this table with the names that actors use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meterd.core.housekeeping.disk_state import CAUSES
from meterd.protocol.errors import CODES, REASONS
from meterd.protocol.messages import KINDS

Kind = Literal["counter", "gauge", "histogram"]

PREFIX = "billing_"
MODES = ("sync", "async")
RESULTS = ("ok", "error")
# How an attempt to archive a log file ends (`housekeeping/archive_copy.py`), and files given up.
ARCHIVED = (
    "stored",
    "present",
    "failed",
    "signal",
    "timeout",
    "unverified",
    "different",
    "damaged",
    "gap",
)
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


def _gauge(name: str, help: str, label: str = "") -> Family:
    return _family(name, "gauge", help, label, ())


def _histogram(name: str, help: str, label: str = "", values: tuple[str, ...] = ()) -> Family:
    return _family(name, "histogram", help, label, values)


def _family(name: str, kind: Kind, help: str, label: str, values: tuple[str, ...]) -> Family:
    if not label:
        return Family(name, kind, help, (), ((),) if kind != "gauge" else ())
    return Family(name, kind, help, (label,), tuple((value,) for value in values))


FAMILIES = (
    # requests
    _counter("requests_total", "Requests taken.", "kind", tuple(KINDS)),
    _counter("requests_refused_total", "Requests that the router refused.", "code", tuple(CODES)),
    _counter(
        "backpressure_replies_total",
        "Requests refused for a while.",
        "reason",
        tuple(code for code, row in CODES.items() if row.retry == "later"),
    ),
    _counter("requests_forgotten_total", "Requests not answered before their deadline."),
    _gauge("inflight_requests", "Requests taken and not yet answered."),
    _gauge("inflight_bytes", "Bytes of those requests."),
    _counter("answers_undeliverable_total", "Answers to clients that had gone."),
    _counter("slow_client_drops_total", "Answers dropped because the client did not read."),
    _gauge("clients_connected", "Connections of clients."),
    _counter(
        "connections_evicted_total",
        "Connections of clients ended for what they sent or held.",
        "reason",
        ("message_size", "memory", "surplus", "malformed", "frames"),
    ),
    # events
    _counter("events_received_total", "Events in ingest requests."),
    _counter("events_ingested_total", "Events stored, by durability asked for.", "mode", MODES),
    _counter("events_duplicate_total", "Events that were there already."),
    _counter("events_conflict_total", "Events whose id belongs to an event with other content."),
    _counter("events_rejected_total", "Events refused, by reason.", "reason", REASONS[1:]),
    _counter("events_unknown_total", "Events of which the outcome was not known in time."),
    _counter("forwarded_total", "Parts of requests sent to the nodes that lead them."),
    _counter("forwards_unsent_total", "Parts that could not be sent: no connection, or no room."),
    _counter("forwards_taken_total", "Parts taken from other nodes."),
    _counter("forwards_refused_total", "Parts and outcomes of other nodes that were wrong."),
    _counter("outcomes_unsent_total", "Outcomes that could not be sent back."),
    _histogram("ingest_duration_seconds", "From request to answer, ingest.", "mode", MODES),
    # queries
    Family(
        "queries_total",
        "counter",
        "Queries answered.",
        ("kind", "result"),
        tuple((kind, result) for kind in QUERIES for result in RESULTS),
    ),
    _histogram("query_duration_seconds", "From question to answer.", "kind", QUERIES),
    # log
    _gauge("wal_offset_bytes", "End of the log: bytes in all log files."),
    _gauge("wal_segments", "Log files."),
    _gauge("wal_size_bytes", "Bytes of the full log files."),
    _gauge("wal_held_bytes", "Bytes of log files that something keeps from deletion.", "holder"),
    _counter("wal_segments_deleted_total", "Log files deleted.", "reason", ("expired", "covered")),
    _counter("wal_appends_total", "Records written."),
    _counter("wal_bytes_written_total", "Bytes written to the log."),
    _counter("wal_rotations_total", "Log files that became full."),
    _counter("wal_damaged_blocks_total", "Blocks of the log that were damaged at a start."),
    _counter("wal_truncated_bytes_total", "Bytes of torn tails cut off at a start."),
    _histogram("wal_fsync_duration_seconds", "Time to make a block durable."),
    _gauge("wal_recovery_duration_seconds", "Time the last start took to replay the log."),
    _gauge("wal_recovered_events", "Events that the last start replayed."),
    # state
    _gauge("state_entries", "Entries of the state machine in memory.", "kind"),
    _counter("checkpoint_runs_total", "Checkpoints begun."),
    _counter("checkpoint_errors_total", "Checkpoints given up for lack of room on the disk."),
    _histogram("checkpoint_duration_seconds", "From the copy of the state to a durable one."),
    _gauge("checkpoint_bytes", "Size of the newest checkpoint."),
    _gauge("checkpoint_waiting", "1 while a checkpoint waits for disk space."),
    _gauge("checkpoint_last_success_timestamp_seconds", "When the newest checkpoint was saved."),
    # retention and disk
    _counter("retention_runs_total", "Looks for what is expired.", "result", ("ok",)),
    _counter("retention_segments_deleted_total", "Segments deleted because they expired."),
    _counter("retention_bytes_freed_total", "Bytes of those segments."),
    _gauge("retention_last_success_timestamp_seconds", "When what expired was last looked for."),
    _gauge("retention_oldest_event_timestamp_seconds", "The oldest event in a segment."),
    _gauge(
        "retention_clock_ahead_seconds",
        "How far the clock is ahead of what is known, when it is not believed; else 0.",
    ),
    _counter("segments_made_total", "Segments made of full log files."),
    _gauge("segments_waiting", "Full log files that wait for their segment."),
    # compaction
    _counter(
        "compaction_runs_total",
        "Jobs that merged segments.",
        "result",
        ("done", "failed", "cancelled"),
    ),
    _counter("compaction_errors_total", "Jobs that could not merge segments."),
    _histogram("compaction_duration_seconds", "Time of such a job."),
    _counter("compaction_files_merged_total", "Segments merged into others."),
    _counter("compaction_bytes_read_total", "Bytes read for it, those that prove it included."),
    _counter("compaction_bytes_written_total", "Bytes of merged segments."),
    _counter(
        "compaction_events_left_out_total", "Events of erased accounts left out of merged segments."
    ),
    _gauge("compaction_running", "1 while segments are merged."),
    _gauge("compaction_progress_ratio", "How much of that is done, 0 to 1."),
    _gauge("compaction_pending_files", "Segments that wait to be merged."),
    _gauge("compaction_last_success_timestamp_seconds", "When such a job was last done."),
    _counter("refused_log_left_out_total", "Refused events that refused.log had no room for."),
    _gauge("disk_free_bytes", "Free space for the data directory.", "path"),
    _gauge("disk_size_bytes", "Size of its file system.", "path"),
    _gauge("disk_inodes_free", "Free inodes of its file system.", "path"),
    _gauge("disk_state", "1 for the state of the disk.", "state"),
    _gauge("disk_inodes", "Inodes of its file system; 0: not limited.", "path"),
    _gauge("disk_limit_bytes", "Free space at which a state begins or ends.", "limit"),
    _gauge("disk_ballast_bytes", "Space kept in reserve for a full disk."),
    _counter(
        "disk_write_stops_total",
        "Times that events were refused for lack of space.",
        "cause",
        CAUSES,
    ),
    _counter("disk_write_stop_seconds_total", "How long they were refused in all."),
    _counter("disk_check_errors_total", "Looks at the disk that failed."),
    _gauge("storage_bytes", "Space that files of the data directory take.", "kind"),
    # archive
    _gauge("archive_queue_segments", "Full log files that are not in the archive."),
    _gauge("archive_queue_bytes", "Bytes of those files."),
    _gauge("archive_queue_full", "1 while more wait than archive.queue_max."),
    _gauge("archive_gap_active", "1 while the archive lacks log files for good."),
    _counter(
        "archive_segments_total",
        "Attempts to archive a log file, and files given up.",
        "result",
        ARCHIVED,
    ),
    _histogram("archive_duration_seconds", "Time to archive one log file."),
    _gauge("archive_last_success_timestamp_seconds", "When a log file was last archived."),
    _gauge("archive_last_failure_timestamp_seconds", "When archiving last failed."),
    # backups
    _gauge("backup_last_success_timestamp_seconds", "When the last backup was whole.", "type"),
    _gauge("backup_last_attempt_timestamp_seconds", "When the last backup was asked for."),
    _gauge("backup_last_duration_seconds", "Time that the last backup took."),
    _gauge("backup_last_bytes", "Bytes of the last backup, those of its chain included."),
    _gauge("backup_last_events", "Stored events in the last backup."),
    _counter("backup_runs_total", "Backups.", "result", ("ok", "failed", "cancelled")),
    _gauge("backup_verified_timestamp_seconds", "When backups were found whole.", "level"),
    _gauge("backups_present", "Backups in the store when it was last verified."),
    _gauge("backups_broken", "Backups that were damaged then."),
    _gauge("drill_last_success_timestamp_seconds", "When a drill last brought everything back."),
    _gauge("drill_rto_seconds", "Time from nothing to a node that serves, in the last drill."),
    _gauge("drill_rpo_seconds", "Age of the backup of the last drill."),
    # replication: a group of one has neither, and both belong to every page
    _counter("view_changes_total", "How often partitions got a new leader."),
    _gauge("replication_lag_ops", "Ops that a peer lacks of the groups led here.", "peer"),
    _gauge("partition_leader", "Partitions that this node leads."),
    _gauge("groups_held", "Groups of which this node has a replica."),
    _gauge("partitions_without_leader", "Groups of those whose leader is not known here."),
    _gauge("partitions_leader_silent", "Groups of those whose leader does not answer this node."),
    _gauge("term", "Highest term of a group."),
    _gauge("membership_version", "Version of the members and the plan."),
    _gauge("peers", "Other nodes of the cluster."),
    _gauge("peer_up", "1 when a peer has answered a beat lately.", "peer"),
    _gauge("peer_round_trip_seconds", "Time that a peer's last answer to a beat took.", "peer"),
    _gauge("clock_offset_seconds", "A peer's clock minus this node's.", "peer"),
    _counter(
        "peer_messages_lost_total",
        "Messages to other nodes that could not be sent at once.",
        "reason",
        ("full", "unconnected"),
    ),
    _counter(
        "peer_messages_dropped_total",
        "Messages on the replication port that were not taken.",
        "reason",
        ("version", "malformed", "cluster", "target", "stranger", "old"),
    ),
    _counter("peer_connections_reset_total", "Connections to the replication port cut off."),
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
