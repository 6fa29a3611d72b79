"""What an operator can set: one frozen dataclass per section, each key with default and limits.

`Options()` is a complete, valid configuration.  Durations are float seconds and sizes are int bytes
once they are in here; "1h" and "64MiB" exist only in files, variables and flags, and `parse_value`
is the one place that reads them.  Where values come from, and which source wins, is decided in
`meterd.config`; actors see only the result.

Invariants:
  * an `Options` made by `from_mapping` keeps every limit below and every rule in `check`
  * a key marked reloadable may change while the node runs; no other key does
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meterd.actors.starting import peer_list
from meterd.protocol.errors import ConfigError
from meterd.protocol.fields import is_host

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SIZE_UNITS = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
UNITS: Mapping[str, Mapping[str, float]] = {
    "count": {"": 1},
    "ratio": {"": 1},
    "size": SIZE_UNITS,
    "duration": DURATION_UNITS,
}
SWITCHES = {"true": True, "false": False}
# A command may have several lines.
LINE_ENDS = str.maketrans("\n\t", "  ")

QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")

# A node number fits the u32 of the log's file header.
NODE_ID_MAX = (1 << 32) - 1
PORT_MAX = peer_list.PORT_MAX


def _text(default: str, help: str, choices: tuple[str, ...] = (), **flags: bool) -> Any:
    return _key(default, "text", help, choices=choices, **flags)


def _switch(default: bool, help: str, **flags: bool) -> Any:
    return _key(default, "switch", help, **flags)


def _count(default: int, help: str, low: int, high: int, **flags: bool) -> Any:
    return _key(default, "count", help, low=low, high=high, **flags)


def _size(default: int, help: str, low: int, high: int, **flags: bool) -> Any:
    return _key(default, "size", help, low=low, high=high, **flags)


def _duration(default: float, help: str, low: float, high: float, **flags: bool) -> Any:
    return _key(default, "duration", help, low=low, high=high, **flags)


def _ratio(default: float, help: str, **flags: bool) -> Any:
    return _key(default, "ratio", help, low=0.0, high=0.9, **flags)


def _key(default: object, kind: str, help: str, **metadata: Any) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help, **metadata})


@dataclass(frozen=True)
class Node:
    """Who this node is and where it listens."""

    id: int = _count(0, "number of this node, unique in its cluster", 0, NODE_ID_MAX)
    data_dir: str = _text("./data", "directory of everything the node keeps")
    listen: str = _text("127.0.0.1", "address to listen on; 0.0.0.0 or :: for every interface")
    port: int = _count(7001, "application port", 1, PORT_MAX)
    advertise: str = _text(
        "", "host name or address clients are told; empty: the listen address, or the host name"
    )
    http_port: int = _count(9090, "port of /health and /metrics", 1, PORT_MAX)
    http_listen: str = _text("", "address of /health and /metrics; empty: as listen")
    bootstrap: str = _text(
        "auto",
        "auto: recover, or in an empty directory join the cluster of the peers, or make one; new,"
        " join, recover: only that",
        choices=("auto", "new", "join", "recover"),
    )
    idle_poll: float = _duration(
        0.0, "keep processors awake for so long after each request or answer; 0s: never", 0.0, 0.1
    )
    peers: str = _text(
        "", "the nodes of the cluster, NODE_ID:HOST:REPLICATION_PORT,...; empty: a single node"
    )

    @property
    def replication_port(self) -> int:
        """Where other nodes reach this one."""
        return self.port + peer_list.REPLICATION_OFFSET

    @property
    def cluster_nodes(self) -> tuple[peer_list.Peer, ...]:
        """All nodes of the list, this one among them; none for a single node."""
        return peer_list.nodes_of(self.id, self.advertise, self.port, self.peers)


@dataclass(frozen=True)
class Wal:
    """The log."""

    segment_size: int = _size(64 * MIB, "size of a log file", 4 * MIB, 1 * GIB)
    retention_days: int = _count(
        7, "keep log files that nothing needs for so many days", 0, 36_500, reloadable=True
    )
    max_segments: int = _count(
        100, "but not more than so many of them", 1, 1_000_000, reloadable=True
    )
    min_segments: int = _count(4, "and never fewer", 1, 1_000_000, reloadable=True)
    replica_segments: int = _count(
        200,
        "keep up to so many for nodes that are behind; one further behind takes a copy of a peer",
        0,
        1_000_000,
        reloadable=True,
    )


@dataclass(frozen=True)
class Archive:
    """Copies of full log files, kept elsewhere.  On when there is a target or a command."""

    target: str = _text(
        "", "where they go: s3://BUCKET/PREFIX or the whole path of a directory", reloadable=True
    )
    command: str = _text(
        "",
        "or a command that stores one: {path} is the file, {name} what to call it; exit code 0:"
        " it is stored",
        reloadable=True,
    )
    verify_command: str = _text(
        "", "and one that writes the stored copy of {name} to standard output", reloadable=True
    )
    verify: str = _text(
        "content",
        "content: read every copy back and compare it; size: ask for its size only",
        choices=("content", "size"),
        reloadable=True,
    )
    timeout: float = _duration(
        60.0, "a command that takes longer has failed", 0.1, 86_400.0, reloadable=True
    )
    check_interval: float = _duration(
        10.0, "look for full log files so often", 0.1, 3_600.0, reloadable=True
    )
    queue_max: int = _size(
        4 * GIB, "files that wait are too many beyond so many bytes", 0, 1 << 50, reloadable=True
    )
    on_queue_full: str = _text(
        "stop",
        "stop: keep them all, until the disk's limits stop events; gap: give up the oldest",
        choices=("stop", "gap"),
        reloadable=True,
    )


@dataclass(frozen=True)
class Storage:
    """Checkpoints: what a start does not have to replay."""

    checkpoint_events: int = _count(
        500_000, "save a checkpoint after so many events", 1_000, 1_000_000_000, reloadable=True
    )
    checkpoint_interval: float = _duration(
        60.0, "and at least so often while events arrive", 1.0, 86_400.0, reloadable=True
    )
    copy_grace: float = _duration(
        86_400.0,
        "files that others replace stay so long, for who copies the directory",
        0.0,
        30 * 86_400.0,
        reloadable=True,
    )


@dataclass(frozen=True)
class Retention:
    """How long events are kept, and how far ahead they may lie."""

    days: int = _count(90, "keep raw events, and know their ids, for so many days", 1, 36_500)
    totals_days: int = _count(
        0, "keep totals for so many days, at least as long as days; 0: as long as days", 0, 36_500
    )
    sweep_interval: float = _duration(
        3_600.0, "look for expired log files so often", 1.0, 86_400.0, reloadable=True
    )
    future_hours: int = _count(24, "take events at most so many hours ahead of now", 0, 87_600)
    clock_jump_max: float = _duration(
        48 * 3_600.0,
        "do not expire by a clock that is so far ahead of what is known, before it has run evenly"
        " for so long",
        86_400.0,
        36_500 * 86_400.0,
    )
    grace_after_restore: float = _duration(
        168 * 3_600.0,
        "after a restore nothing expires for so long",
        0.0,
        3_650 * 86_400.0,
        reloadable=True,
    )


@dataclass(frozen=True)
class Backup:
    """How backups are made."""

    io_limit: int = _size(
        64 * MIB, "read at most so many bytes a second", 64 * KIB, 1 << 40, reloadable=True
    )


@dataclass(frozen=True)
class Compaction:
    """How small segments become large ones, in the background."""

    enabled: bool = _switch(
        True, "true: merge by itself; false: only when an operator asks", reloadable=True
    )
    merge_interval: float = _duration(
        30.0, "look for segments to merge so often", 0.1, 86_400.0, reloadable=True
    )
    interval: float = _duration(
        86_400.0, "and so often for fewer than min_files", 1.0, 30 * 86_400.0, reloadable=True
    )
    min_files: int = _count(4, "merge so many segments of like size", 2, 32, reloadable=True)
    target_file: int = _size(256 * MIB, "but make none larger", 1 * MIB, 64 * GIB, reloadable=True)
    io_limit: int = _size(
        32 * MIB, "read and write so many bytes a second", 64 * KIB, 64 * GIB, reloadable=True
    )


@dataclass(frozen=True)
class Disk:
    """When space runs short, in bytes, as part of the file system, and in inodes."""

    check_interval: float = _duration(
        10.0, "look at the free space so often", 0.1, 600.0, reloadable=True
    )
    check_interval_min: float = _duration(
        0.1, "and so often when it is short or falls fast", 0.01, 60.0, reloadable=True
    )
    warn_free: int = _size(2 * GIB, "warn when less is free", 0, 1 << 50, reloadable=True)
    warn_free_ratio: float = _ratio(
        0.15, "warn when a smaller part of the file system is free", reloadable=True
    )
    stop_free: int = _size(
        256 * MIB, "refuse events when less is free", 0, 1 << 50, reloadable=True
    )
    stop_free_ratio: float = _ratio(
        0.0, "refuse events when a smaller part of the file system is free", reloadable=True
    )
    hard_free: int = _size(
        64 * MIB,
        "hold background writers still when less is free; at most half of stop_free",
        0,
        1 << 50,
        reloadable=True,
    )
    resume_margin: int = _size(
        256 * MIB, "take events again when so much more is free", 0, 1 << 50, reloadable=True
    )
    resume_hold: float = _duration(10.0, "and has been for so long", 0.0, 3_600.0, reloadable=True)
    ballast: int = _size(
        128 * MIB,
        "keep so much in reserve for a full disk; at most half of stop_free",
        0,
        1 << 40,
        reloadable=True,
    )
    inode_warn: int = _count(10_000, "warn when fewer inodes are free", 0, 1 << 40, reloadable=True)
    inode_warn_ratio: float = _ratio(
        0.1, "warn when a smaller part of the inodes is free", reloadable=True
    )
    inode_stop: int = _count(
        1_000, "refuse events when fewer inodes are free", 0, 1 << 40, reloadable=True
    )
    inode_resume: int = _count(
        2_000, "take events again when so many are free", 0, 1 << 40, reloadable=True
    )


@dataclass(frozen=True)
class Limits:
    """What the node holds at most; beyond it requests are refused, never queued without end."""

    inflight_requests: int = _count(10_000, "requests taken and not yet answered", 1, 90_000)
    inflight_bytes: int = _size(128 * MIB, "bytes of those requests", 32 * MIB, 64 * GIB)
    connections: int = _count(4_096, "connections of clients", 16, 60_000)
    accounts: int = _count(20_000_000, "accounts with usage", 1_000, 2_000_000_000)
    series: int = _count(50_000_000, "series: account, metric, dimensions", 1_000, 2_000_000_000)
    cells: int = _count(100_000_000, "totals: a series in one period", 1_000, 4_000_000_000)


@dataclass(frozen=True)
class Ingest:
    """How events become records of the log."""

    record_events_max: int = _count(8_192, "start a new record after so many events", 1, 1_000_000)


@dataclass(frozen=True)
class Log:
    """What the node says about itself on standard error."""

    level: str = _text(
        "info",
        "least important messages to write",
        choices=("debug", "info", "warning", "error"),
        reloadable=True,
    )
    format: str = _text("text", "text for people, json for machines", choices=("text", "json"))


@dataclass(frozen=True)
class Shutdown:
    """How a node stops."""

    grace: float = _duration(5.0, "wait so long for requests in flight", 0.0, 600.0)


@dataclass(frozen=True)
class Watchdog:
    """When an actor counts as hung."""

    stall: float = _duration(10.0, "end and restart an actor silent for so long", 2.0, 600.0)


@dataclass(frozen=True)
class Options:
    """All sections.  Immutable: a reload makes new options."""

    node: Node = Node()
    wal: Wal = Wal()
    archive: Archive = Archive()
    storage: Storage = Storage()
    retention: Retention = Retention()
    backup: Backup = Backup()
    compaction: Compaction = Compaction()
    disk: Disk = Disk()
    limits: Limits = Limits()
    ingest: Ingest = Ingest()
    log: Log = Log()
    shutdown: Shutdown = Shutdown()
    watchdog: Watchdog = Watchdog()

    @classmethod
    def from_mapping(cls, sections: Mapping[str, Mapping[str, object]]) -> Options:
        """Make options from {section: {key: value}}; keys that are absent keep their defaults.

        Raises ConfigError.
        """
        made = {}
        for section, values in sections.items():
            if not isinstance(values, Mapping):
                raise _wrong(section, "a section, not a single value, was expected")
            parsed = {key: parse_value(section, key, value) for key, value in values.items()}
            made[section] = dataclasses.replace(getattr(cls(), find_section(section)), **parsed)
        options = cls(**made)
        check(options)
        return options

    @classmethod
    def from_json(cls, text: str | bytes) -> Options:
        """Read what `to_json` wrote."""
        return cls.from_mapping(json.loads(text))

    def to_json(self) -> str:
        """Write every key; `from_json` gives the same options."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def reloaded(self, other: Options) -> tuple[Options, list[str]]:
        """Take the reloadable keys of `other`; return the result and the keys it kept."""
        taken = dataclasses.asdict(self)
        kept = []
        for section, field in all_keys():
            value = getattr(getattr(other, section), field.name)
            if value == taken[section][field.name]:
                continue
            if field.metadata.get("reloadable"):
                taken[section][field.name] = value
            else:
                kept.append(f"{section}.{field.name}")
        return Options.from_mapping(taken), kept


def all_keys() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield (section, field) for every key there is, in the order of this file."""
    for section in dataclasses.fields(Options):
        for field in dataclasses.fields(section.default):  # type: ignore[arg-type]
            yield section.name, field


def find_section(name: str) -> str:
    """Return `name` if there is such a section.  Raises ConfigError with the nearest one."""
    sections = [field.name for field in dataclasses.fields(Options)]
    if name not in sections:
        raise _wrong(name, f"no such section{_nearest(name, sections)}")
    return name


def find_key(section: str, key: str) -> dataclasses.Field[Any]:
    """Return the field of a key.  Raises ConfigError with the nearest known key."""
    find_section(section)
    fields = {field.name: field for owner, field in all_keys() if owner == section}
    if key in fields:
        return fields[key]
    near = difflib.get_close_matches(key, fields, 1)
    if near:
        raise _wrong(f"{section}.{key}", f"no such key; did you mean {section}.{near[0]}?")
    elsewhere = [f"{owner}.{field.name}" for owner, field in all_keys()]
    raise _wrong(f"{section}.{key}", f"no such key{_nearest(f'{section}.{key}', elsewhere)}")


def _wrong(key: str, reason: str) -> ConfigError:
    return ConfigError(f"{key}: {reason}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"


def parse_value(section: str, key: str, value: object) -> object:
    """Turn a value as people write it into the type of its key, within its limits.

    Raises ConfigError.
    """
    field = find_key(section, key)
    rules = field.metadata
    name = f"{section}.{key}"
    if rules["kind"] == "text":
        return _printable(name, rules["choices"], value)
    if rules["kind"] == "switch":
        return _on_or_off(name, value)
    try:
        number = _number(name, rules["kind"], value)
    except (OverflowError, ValueError) as error:  # more digits than Python turns into a number
        raise _wrong(name, f"is too large for a {rules['kind']}") from error
    if not rules["low"] <= number <= rules["high"]:
        low, high = (format_value(rules["kind"], rules[end]) for end in ("low", "high"))
        raise _wrong(name, f"{value} is not between {low} and {high}")
    return number


def _printable(name: str, choices: tuple[str, ...], value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, f"text was expected, not {value!r}")
    if not value.translate(LINE_ENDS).isprintable():  # no path, host or command has others
        raise _wrong(name, f"{value!r} has characters that nobody can see")
    if choices and value not in choices:
        raise _wrong(name, f"{value!r} is none of {', '.join(choices)}")
    return value


def _on_or_off(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in SWITCHES:
        return SWITCHES[value]
    raise _wrong(name, f"true or false was expected, not {value!r}")


def _number(name: str, kind: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong(name, f"a {kind} was expected, not {value!r}")
    units: Mapping[str, float] = UNITS[kind]
    if isinstance(value, str):
        match = QUANTITY.fullmatch(value.strip())
        if match is None or match[2] not in units:
            raise _wrong(name, f"{value!r} is no {kind}{_examples(kind)}")
        # Decimal digits of a whole number must not pass through a float.
        digits = float(match[1]) if "." in match[1] else int(match[1])
        value = digits * units[match[2]]
    if kind in ("duration", "ratio"):
        return float(value)
    if not math.isfinite(value) or value != int(value):
        raise _wrong(name, f"{value} is not a whole number")
    return int(value)


def _examples(kind: str) -> str:
    return {
        "count": "",
        "ratio": ", such as 0.15",
        "size": ", such as 64MiB",
        "duration": ", such as 500ms, 10s or 1h",
    }[kind]


def format_value(kind: str, value: float | str) -> str:
    """Write a value the way `parse_value` reads it, in the largest unit that is whole."""
    if kind == "switch":
        return "true" if value else "false"
    if kind in ("text", "count", "ratio") or isinstance(value, str):
        return str(value)
    units: Mapping[str, float] = SIZE_UNITS if kind == "size" else DURATION_UNITS
    for unit, factor in sorted(units.items(), key=lambda item: (-item[1], item[0] == "B")):
        if unit and value and value % factor == 0:
            return f"{int(value // factor)}{unit}"
    return "0B" if kind == "size" else f"{round(float(value) * 1000)}ms" if value else "0s"


def check(options: Options) -> None:
    """Check what concerns several keys.  Raises ConfigError."""
    node, disk, archive = options.node, options.disk, options.archive
    if options.wal.min_segments > options.wal.max_segments:
        raise _wrong("wal.min_segments", "must not be above wal.max_segments")
    if archive.target and archive.command:
        raise _wrong("archive.command", "either archive.target or archive.command")
    if archive.target and not archive.target.startswith(("/", "file:///", "s3://")):
        raise _wrong("archive.target", "s3://BUCKET/PREFIX, or the whole path of a directory")
    if archive.command and "{path}" not in archive.command:
        raise _wrong("archive.command", "nothing in it is {path}")
    if archive.verify_command and "{name}" not in archive.verify_command:
        raise _wrong("archive.verify_command", "nothing in it is {name}")
    if not node.listen:
        raise _wrong("node.listen", "an address, such as 127.0.0.1, or 0.0.0.0 for every interface")
    if not node.data_dir:
        raise _wrong("node.data_dir", "a directory, such as ./data")
    if node.advertise and not is_host(node.advertise):
        raise _wrong("node.advertise", f"{node.advertise!r} is no host name and no address")
    if node.port == node.http_port:
        raise _wrong("node.http_port", f"{node.http_port} is the application port")
    peer_list.check(node.id, node.port, node.peers)
    if node.peers and node.http_port == node.replication_port:
        raise _wrong("node.http_port", f"{node.http_port} is the replication port")
    if node.bootstrap == "join" and not node.peers:
        raise _wrong("node.bootstrap", "join wants --peers: the nodes of the cluster to join")
    retention = options.retention
    if 0 < retention.totals_days < retention.days:
        raise _wrong("retention.totals_days", "must not be below retention.days, unless it is 0")
    if disk.stop_free > disk.warn_free:
        raise _wrong("disk.stop_free", "must not be above disk.warn_free")
