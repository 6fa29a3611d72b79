"""Brings a backup back as a data directory, while no node runs on it.

The backup is fetched into a new directory beside the old one and verified there.  Only then the old
directory is moved aside, under a name that says when, and the new one takes its place; nothing is
deleted.  A restore that ends early leaves the old directory as it was, and at most a directory
`NAME.restoring-…`, which the next restore clears.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meterd.actors.backups.shelf import Contents, Shelf
from meterd.actors.backups.verifying import Finding, Level, Progress, check_directory, fetch
from meterd.actors.files.disk import DirectoryLock, sync_directory
from meterd.actors.keeping import erased_file
from meterd.actors.starting import identity, restored
from meterd.actors.starting.identity import STORAGE_VERSION
from meterd.core.housekeeping.backup_plan import newest_first
from meterd.protocol import checkpoint_format
from meterd.protocol.backup_manifest import FILE_NAME, Manifest
from meterd.protocol.errors import (
    BadRequest,
    BootFailed,
    Corrupt,
    DiskFull,
    MeterdError,
    NotFound,
)
from meterd.protocol.log_format import Damaged

# linux/fcntl.h, linux/fs.h
_AT_CWD, _RENAME_EXCHANGE = -100, 2
RESTORING, BEFORE = ".restoring-", ".before-restore-"
# Room that must be left when all is fetched.
SPARE_SHARE = 0.1


class RestoreRefused(MeterdError):
    """A safety rule says no; the message names it."""

    code = "refused"


class InUse(MeterdError):
    """A node runs on the directory."""

    code = "in_use"
    hint = "stop the node first: systemctl stop meterd"


Scope = Literal["node", "cluster"]


@dataclass(frozen=True)
class Plan:
    """What a restore will do."""

    scope: Scope
    source: str
    manifest: Manifest
    data_dir: str
    new_dir: str
    aside: str | None  # where the old directory goes; None when there is nothing in it
    free: int  # bytes
    old: str  # what is there now

    def to_map(self) -> dict[str, Any]:
        """Return the plan as people and programs see it."""
        one = self.manifest
        return {
            "scope": self.scope,
            "from": self.source,
            "backup": one.name,
            "type": one.type,
            "chain": list(one.chain),
            "cluster_id": one.cluster_id,
            "node_id": one.node_id,
            "cut_time": one.cut.taken,
            "position": str(one.cut.sequence),
            "events": one.events,
            "files": len(one.files),
            "size": one.size,
            "free": self.free,
            "data_dir": self.data_dir,
            "present": self.old,
            "moved_aside_to": self.aside,
        }


def choose(
    contents: Contents, name: str | None, node: int | None = None, data_dir: str = ""
) -> Manifest:
    """Return the backup of a name, or the newest, whose chain is what it was built on.

    Of several nodes it is that of `node`, or else of the one that `data_dir` belongs to.
    Raises NotFound, Corrupt, BadRequest.
    """
    manifest = _newest(contents, node, data_dir) if name is None else _named(contents, name)
    if node not in (None, manifest.node_id):
        raise BadRequest(f"{manifest.name} is of node {manifest.node_id}")
    for file, problem in contents.chain_problems(manifest):
        raise Corrupt(file, 0, f"{problem}; {manifest.name} is built on it")
    return manifest


def _named(contents: Contents, name: str) -> Manifest:
    if name in contents.broken:
        raise Corrupt(f"{name}/{FILE_NAME}", 0, contents.broken[name])
    if name not in contents.manifests:
        raise NotFound(f"there is no backup {name}")
    return contents.manifests[name]


def _newest(contents: Contents, node: int | None, data_dir: str) -> Manifest:
    if contents.broken:
        bad, problem = min(contents.broken.items())
        raise Corrupt(f"{bad}/{FILE_NAME}", 0, f"{problem}; name the backup to use")
    found = [one for one in contents.manifests.values() if node in (None, one.node_id)]
    if not found:
        raise NotFound("there is no backup" + ("" if node is None else f" of node {node}"))
    owners = {(one.cluster_id, one.node_id) for one in found}
    if len(owners) > 1:
        owners &= _owner_of(data_dir) if data_dir else set()
    if len(owners) != 1:
        nodes = ", ".join(map(str, sorted({one.node_id for one in found})))
        many = f"nodes {nodes}" if node is None else f"node {node} of several clusters"
        raise BadRequest(f"there are backups of {many}; say which with --node or --backup")
    return newest_first(one for one in found if (one.cluster_id, one.node_id) in owners)[0]


def _owner_of(data_dir: str) -> set[tuple[str, int]]:
    """Say which node of which cluster a directory belongs to, if it can be read there."""
    try:
        who = identity.read(data_dir)
    except BootFailed:
        return set()
    return {(who.cluster_id_hex, who.node_id)}


def plan(shelf: Shelf, manifest: Manifest, data_dir: str, scope: Scope) -> Plan:
    """Look what a restore would do.  Raises RestoreRefused, InUse, DiskFull, BootFailed."""
    target = os.path.realpath(data_dir)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise RestoreRefused(f"there is no directory {parent}")
    if os.path.ismount(target):
        raise RestoreRefused(
            f"{target} is a mount point and cannot be moved aside; use one below it"
        )
    if manifest.storage_version > STORAGE_VERSION:
        raise RestoreRefused(
            f"{manifest.name} was made by a newer version, {manifest.meterd_version}"
        )
    occupied = os.path.isdir(target) and bool(set(os.listdir(target)) - {"lock"})
    old = _describe(target, manifest) if occupied else "nothing"
    found = os.statvfs(parent)
    free = found.f_bavail * found.f_frsize
    if free < manifest.size * (1 + SPARE_SHARE):
        raise DiskFull(f"{manifest.name} takes {manifest.size} bytes, and {parent} has {free}")
    return Plan(
        scope=scope,
        source=shelf.store.url,
        manifest=manifest,
        data_dir=target,
        new_dir=f"{target}{RESTORING}{stamp}",
        aside=_unused(f"{target}{BEFORE}{stamp}") if occupied else None,
        free=free,
        old=old,
    )


def _describe(target: str, manifest: Manifest) -> str:
    """Say whose directory is there.  Raises RestoreRefused for another node's, InUse."""
    lock = DirectoryLock(target)
    if os.path.exists(lock.path):
        if not lock.acquire():
            raise InUse(f"{target} is in use")
        lock.release()
    try:
        who = identity.read(target)
    except BootFailed as failure:
        return f"a directory without a readable identity ({failure.reason})"
    if (who.cluster_id_hex, who.node_id) != (manifest.cluster_id, manifest.node_id):
        raise RestoreRefused(
            f"{target} belongs to node {who.node_id} of cluster {who.cluster_id_hex}, the backup"
            f" to node {manifest.node_id} of {manifest.cluster_id}; move it away first"
        )
    return f"node {who.node_id} of the same cluster"


def _unused(path: str) -> str:
    number = 1
    unused = path
    while os.path.exists(unused):
        number += 1
        unused = f"{path}-{number}"
    return unused


def carry_out(shelf: Shelf, todo: Plan, level: Level, say: Progress) -> list[Finding]:
    """Restore.  Returns what is wrong with the backup; then nothing has changed.

    Raises InUse, Corrupt, StoreFailed, DiskFull, FsyncFailed, OSError.
    """
    lock = DirectoryLock(todo.data_dir)
    if os.path.isdir(todo.data_dir) and not lock.acquire():
        raise InUse(f"{todo.data_dir} is in use")
    try:
        _clear(todo.data_dir)
        os.mkdir(todo.new_dir, 0o750)
        try:
            fetch(shelf, todo.manifest, todo.new_dir, say)
            findings = []
            if level == "replay":
                findings = list(check_directory(todo.manifest, todo.new_dir, say))
            if findings:
                shutil.rmtree(todo.new_dir)
                return findings
            _settle(todo)
        except BaseException:
            shutil.rmtree(todo.new_dir, ignore_errors=True)
            raise
        say("moving the new directory into its place")
        _swap(todo)
    finally:
        lock.release()
    return []


def is_alone(directory: str) -> bool:
    """Whether a restored directory is that of a cluster of one.  Raises BootFailed."""
    who = identity.read(directory)
    if any(number != who.node_id for number, *_ in who.first_members):
        return False
    try:
        raw = Path(directory, "partition_map.bin").read_bytes()
        return len(checkpoint_format.read_state(raw)["nodes"]) < 2
    except (FileNotFoundError, Damaged):
        return True


def _clear(data_dir: str) -> None:
    """Remove what restores that ended early have left."""
    name = os.path.basename(data_dir) + RESTORING
    for entry in os.scandir(os.path.dirname(data_dir)):
        if entry.name.startswith(name):
            shutil.rmtree(entry.path)


def _settle(todo: Plan) -> None:
    """Make what was fetched a directory of its own: identity, origin, erasures, owner."""
    who = identity.read(todo.new_dir)
    identity.write(todo.new_dir, who)
    cut = todo.manifest.cut
    origin = restored.Restored(
        todo.manifest.name, time.time_ns(), cut.sequence, todo.manifest.incarnation
    )
    restored.write(todo.new_dir, origin)
    # What was erased since the backup was made is erased again when the node starts.
    erased_file.carry_over(todo.data_dir, todo.new_dir)
    model = todo.data_dir if os.path.isdir(todo.data_dir) else os.path.dirname(todo.data_dir)
    owner = os.stat(model)
    if os.geteuid() == 0 and owner.st_uid != 0:
        for path in [todo.new_dir, *(entry.path for entry in os.scandir(todo.new_dir))]:
            os.chown(path, owner.st_uid, owner.st_gid)
    sync_directory(todo.new_dir)


def _swap(todo: Plan) -> None:
    """Put the new directory into the place of the old one, at no moment leaving it empty."""
    parent = os.path.dirname(todo.data_dir)
    if todo.aside is None:
        if os.path.isdir(todo.data_dir):
            Path(todo.data_dir, "lock").unlink(missing_ok=True)
            os.rmdir(todo.data_dir)
        os.rename(todo.new_dir, todo.data_dir)
    else:
        os.rename(todo.new_dir, todo.aside)
        exchange(todo.aside, todo.data_dir)
    sync_directory(parent)


def exchange(one: str, other: str) -> None:
    """Let two directories take each other's name, at once where the file system can."""
    library = ctypes.CDLL(None, use_errno=True)
    names = (_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other))
    if library.renameat2(*names, _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), one)
    between = f"{one}-new"
    os.rename(one, between)
    os.rename(other, one)
    os.rename(between, other)
