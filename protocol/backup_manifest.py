"""The manifest of a backup: what it consists of, where it cuts the log, what must come out.

A manifest is written last, so a backup without one is unfinished.  It is JSON, for people and for
other programs; its own SHA-256 stands in it.  docs/STORAGE.md describes the keys.

Invariants:
  * `decode` gives a manifest all of whose names are plain file names, or raises BadManifest
  * a file lies in the backup that its entry names: this one, or one of `chain`
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from meterd.protocol.errors import StorageError

MAGIC: Final = "meterd backup"
FORMAT_VERSION: Final = 1
FILE_NAME: Final = "manifest.json"
# A partition and metric take some 30 bytes, a file 200.
SIZE_MAX: Final = 256 * 1024 * 1024
FOLDERS: Final = ("checkpoint", "segments", "wal", "meta")

# No part of a name of an object begins with a dot, so none leads out of a directory.
_NAME = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]{0,254}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

BackupType = Literal["full", "incr"]
# (partition, metric number) → (stored events, sum in units of the metric's last decimal).
TotalsMap = dict[tuple[int, int], tuple[int, int]]


class BadManifest(StorageError):
    """The bytes are no manifest, or not the ones that were written."""

    code = "corrupt"
    hint = "use another backup; meterctl backup list shows them"


@dataclass(frozen=True, slots=True)
class BackupFile:
    """One file of the data directory as the backup holds it."""

    name: str  # in the data directory
    folder: str
    size: int
    sha256: str
    backup: str  # the backup it lies in

    @property
    def object_name(self) -> str:
        """Where it lies in the store."""
        return f"{self.backup}/{self.folder}/{self.name}"


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric number of the totals means."""

    code: str
    version: int
    decimals: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the log of the backup ends, and up to where it is committed."""

    file_number: int
    offset: int
    block_seq: int
    sequence: int  # of the last record
    leader_time: int  # of the last record, UTC ns
    taken: int  # when it was the end of the log, UTC ns
    # Group → term, index, digest (hexadecimal) of its last op that is committed; what the log holds
    # of it behind that is not, and counts for nothing.
    groups: dict[int, tuple[int, int, str]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """See the module."""

    name: str
    type: BackupType
    chain: tuple[str, ...]  # the backups it needs, its base first, its parent last
    cluster_id: str
    node_id: int
    incarnation: int
    meterd_version: str
    storage_version: int
    started: int  # UTC ns
    finished: int
    horizon: int
    cut: Cut
    checkpoint_sequence: int
    files: tuple[BackupFile, ...]
    metrics: dict[int, Metric]
    totals: TotalsMap

    @property
    def parent(self) -> str | None:
        return self.chain[-1] if self.chain else None

    @property
    def events(self) -> int:
        """How many stored events its files hold."""
        return sum(count for count, _ in self.totals.values())

    @property
    def size(self) -> int:
        """Bytes of all files, those of the chain included."""
        return sum(file.size for file in self.files)

    @property
    def own_size(self) -> int:
        """Bytes of the files that lie in this backup."""
        return sum(file.size for file in self.files if file.backup == self.name)


def encode(manifest: Manifest) -> bytes:
    """Make the bytes of a manifest."""
    body: dict[str, Any] = {"magic": MAGIC, "format_version": FORMAT_VERSION}
    body |= {key: value for key, value in asdict(manifest).items() if key != "totals"}
    body["parent"], body["events"] = manifest.parent, manifest.events
    body["totals"] = [
        [partition, number, count, str(total)]
        for (partition, number), (count, total) in sorted(manifest.totals.items())
    ]
    body = json.loads(json.dumps(body))  # keys are texts from here on, as a reader sees them
    body["sha256"] = _own_hash(body)
    return json.dumps(body, indent=1).encode() + b"\n"


def decode(raw: bytes) -> Manifest:
    """Read the bytes of a manifest.  Raises BadManifest."""
    try:
        body = json.loads(raw)
        if type(body) is not dict or body.get("magic") != MAGIC:
            raise BadManifest("it is no manifest of a backup")
        if body["format_version"] != FORMAT_VERSION:
            raise BadManifest(f"its format version {body['format_version']} is not known")
        if body.pop("sha256") != _own_hash(body) or encode(made := _manifest(body)) != raw:
            raise BadManifest("its checksum does not match")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadManifest(f"it cannot be read: {error!r:.200}") from error
    _check(made)
    return made


def _manifest(body: Mapping[str, Any]) -> Manifest:
    cut = dict(body["cut"])
    cut["groups"] = {int(group): tuple(value) for group, value in cut["groups"].items()}
    fields = {key: body[key] for key in Manifest.__dataclass_fields__}
    fields |= {
        "chain": tuple(body["chain"]),
        "cut": Cut(**cut),
        "files": tuple(BackupFile(**file) for file in body["files"]),
        "metrics": {int(number): Metric(**found) for number, found in body["metrics"].items()},
        "totals": {(int(p), int(n)): (int(c), int(t)) for p, n, c, t in body["totals"]},
    }
    return Manifest(**fields)


def _check(manifest: Manifest) -> None:
    """Check that the names are harmless and say where each file lies.  Raises BadManifest."""
    places = {*manifest.chain, manifest.name}
    for name in (*places, *(file.name for file in manifest.files)):
        if not _NAME.fullmatch(name):
            raise BadManifest(f"{name[:300]!r} is no file name")
    for file in manifest.files:
        good = file.folder in FOLDERS and file.backup in places and file.size >= 0
        if not good or not _SHA256.fullmatch(file.sha256):
            raise BadManifest(f"its entry of {file.name} makes no sense")
    if len({file.name for file in manifest.files}) != len(manifest.files):
        raise BadManifest("it names a file twice")


def _own_hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
