"""Who owns a data directory: `node.json`, made once, read at every start.

A directory with a history is never made new again; one of another node, of a newer version, or
without its `node.json` is refused: whoever mixes up directories must not mix up invoices.

The identity key is secret: with it one could make two event ids collide.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from meterd.actors import endings
from meterd.actors.files import disk
from meterd.actors.files.sealed_json import SIZE_MAX, seal, unseal
from meterd.core.cluster import members
from meterd.core.cluster.members import Members
from meterd.protocol.errors import BootFailed, StorageError
from meterd.protocol.raft_messages import Configuration, member_id

MAGIC = "meterd node"
STORAGE_VERSION = 2
FILE_NAME = "node.json"
KEY_SIZE = 16

# Files that show that a directory has a history.
HISTORY = ("wal*.log", "checkpoint*.bin", "metric_registry.bin", "ids-*.run", "*.seg")


@dataclass(frozen=True)
class Identity:
    """The contents of `node.json`; hexadecimal where the log holds bytes."""

    node_id: int
    cluster_id_hex: str
    identity_key_hex: str
    incarnation: int
    storage_version: int
    created: str
    directory_inode: int = 0  # of the directory it was written in; 0 when that is not known
    # Number, replication address and application address of the nodes that the cluster was made
    # of; empty for a single node.
    first_members: tuple[tuple[int, str, str], ...] = ()
    # Number, incarnation and replication address of the other nodes that there were when a running
    # cluster gave this one its identity; empty for those that the cluster was made of.
    others: tuple[tuple[int, int, str], ...] = ()

    @property
    def beginning(self) -> Members:
        """Members and plan when the cluster was made: what its log starts from."""
        return members.first(self.first_members or [(self.node_id, "", "")])

    @property
    def first_configurations(self) -> list[Configuration]:
        """Each group's members where its log begins."""
        beginning = self.beginning
        return [beginning.configuration(group) for group in range(members.GROUP_COUNT)]

    @property
    def seeds(self) -> list[int]:
        """The members to talk to before the log says who there is."""
        if not self.others:
            return [one.member for one in self.beginning.present if one.node != self.node_id]
        first = members.FIRST_INCARNATION
        return [member_id(node, incarnation - first) for node, incarnation, _ in self.others]

    @property
    def member(self) -> int:
        """Who this node is in its groups; the first incarnation is 1 here and 0 there."""
        return member_id(self.node_id, max(self.incarnation, 1) - 1)

    @property
    def cluster_id(self) -> bytes:
        return bytes.fromhex(self.cluster_id_hex)

    @property
    def identity_key(self) -> bytes:
        return bytes.fromhex(self.identity_key_hex)


def of_history(data_dir: str, node_id: int, bootstrap: str) -> Identity | None:
    """Read the identity of a directory; return None where there is none and one may be made.

    Raises BootFailed.
    """
    if (Path(data_dir) / FILE_NAME).exists():
        return _recover(data_dir, node_id, bootstrap)
    found = [path.name for pattern in HISTORY for path in Path(data_dir).glob(pattern)]
    if found:
        raise BootFailed(
            endings.IDENTITY,
            f"{data_dir} has a history ({min(found)}) but no {FILE_NAME}; restore it",
        )
    if bootstrap == "recover":
        raise BootFailed(
            endings.IDENTITY,
            f"{data_dir} is empty, and --bootstrap recover never makes a new cluster;"
            " check --data-dir",
        )
    return None


def new_cluster(node_id: int, first_members: Iterable[tuple[int, str, str]] = ()) -> Identity:
    """Return the identity of the node that makes a new cluster."""
    return taken(
        node_id,
        {
            "cluster_id": secrets.token_hex(KEY_SIZE),
            "identity_key": secrets.token_hex(KEY_SIZE),
            "incarnation": members.FIRST_INCARNATION,
            "first_members": list(first_members),
        },
    )


def taken(node_id: int, fields: Mapping[str, Any]) -> Identity:
    """Return the identity that a cluster gives a node: what `given` has made, or new keys.

    Raises ValueError, TypeError or KeyError when it is none.
    """
    made = Identity(
        node_id=node_id,
        cluster_id_hex=fields["cluster_id"],
        identity_key_hex=fields["identity_key"],
        incarnation=fields["incarnation"],
        storage_version=STORAGE_VERSION,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        first_members=_first_members(fields["first_members"]),
        others=_others(fields.get("others", ())),
    )
    _check(made)
    return made


def given(who: Identity, incarnation: int, others: Iterable[members.Member] = ()) -> dict[str, Any]:
    """Return what another node of the same cluster takes its identity from.

    others: the nodes that it will meet, where it is none of those the cluster was made of.
    """
    return {
        "cluster_id": who.cluster_id_hex,
        "identity_key": who.identity_key_hex,
        "incarnation": incarnation,
        # Of one that was a single node, too: the log begins with it alone.
        "first_members": [list(one) for one in who.first_members] or [[who.node_id, "", ""]],
        "others": [[one.node, one.incarnation, one.peer_address] for one in others],
    }


def _first_members(rows: Iterable[Any]) -> tuple[tuple[int, str, str], ...]:
    return tuple((int(node), str(peer), str(client)) for node, peer, client in rows)


def _others(rows: Iterable[Any]) -> tuple[tuple[int, int, str], ...]:
    return tuple((int(node), int(incarnation), str(peer)) for node, incarnation, peer in rows)


def _check(identity: Identity) -> None:
    if {len(identity.cluster_id), len(identity.identity_key)} != {KEY_SIZE}:
        raise ValueError("a key has the wrong size")
    if type(identity.incarnation) is not int or identity.incarnation < members.FIRST_INCARNATION:
        raise ValueError("its incarnation is no number from 1")


def write(data_dir: str, identity: Identity) -> Identity:
    """Make a directory that of an identity; return what stands in it.  Raises BootFailed."""
    path = os.path.join(data_dir, FILE_NAME)
    try:
        identity = replace(identity, directory_inode=os.stat(data_dir).st_ino)
        disk.atomic_write(path, encode(identity))
    except (OSError, StorageError) as error:
        raise BootFailed(endings.IO_ERROR, f"cannot write {path}: {error}") from error
    return identity


def needs_peers(identity: Identity) -> BootFailed:
    """Return why a node of a cluster does not start as if it were alone."""
    return BootFailed(
        endings.CONFIGURATION,
        f"node {identity.node_id} belongs to cluster {identity.cluster_id_hex} with other nodes;"
        " start it with --peers",
    )


def given_up(identity: Identity, known: Members) -> BootFailed | None:
    """Return why a node does not start that the cluster has removed, or thinks to be lost."""
    own = known.nodes.get(identity.node_id)
    incarnation = max(identity.incarnation, members.FIRST_INCARNATION)
    # A member that has come back learns of its earlier lives, one after the other.
    if own is None or own.incarnation < incarnation:
        return None
    if own.incarnation == incarnation and own.state != members.REMOVED:
        return None
    return BootFailed(
        endings.IDENTITY,
        f"node {identity.node_id} was given up by cluster {identity.cluster_id_hex} in incarnation"
        f" {incarnation}, which is this directory's; to have it back as another one start it with"
        " an empty directory and --bootstrap join",
    )


def is_elsewhere(data_dir: str, identity: Identity) -> bool:
    """Does `node.json` not name the directory that it lies in?"""
    return identity.directory_inode != os.stat(data_dir).st_ino


def is_copy(data_dir: str, identity: Identity) -> bool:
    """Was a directory copied from another, such as by rsync, and not started since?"""
    return identity.directory_inode not in (0, os.stat(data_dir).st_ino)


def _recover(data_dir: str, node_id: int, bootstrap: str) -> Identity:
    identity = read(data_dir)
    if bootstrap == "new":
        raise BootFailed(
            endings.IDENTITY,
            f"{data_dir} already has a history (cluster {identity.cluster_id_hex});"
            " --bootstrap new wants an empty directory; leave it out to start this one",
        )
    if identity.node_id != node_id:
        raise BootFailed(
            endings.IDENTITY,
            f"{data_dir} belongs to node {identity.node_id}, not to node {node_id};"
            f" start it with --node-id {identity.node_id}",
        )
    return identity


def read(data_dir: str) -> Identity:
    """Read the identity of a directory that has one.  Raises BootFailed."""
    path = Path(data_dir) / FILE_NAME
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_MAX)
    except OSError as error:
        raise BootFailed(endings.IO_ERROR, f"cannot read {path}: {error}") from error
    return decode(raw, str(path))


def encode(identity: Identity) -> bytes:
    """Make the bytes of `node.json`."""
    fields = asdict(identity)
    if not identity.others:  # as versions write it that know nothing of them
        del fields["others"]
    return seal({"magic": MAGIC, **fields})


def decode(raw: bytes, path: str) -> Identity:
    """Read the bytes of `node.json`.  Raises BootFailed."""
    try:
        body = json.loads(raw)
        if body["magic"] != MAGIC:
            raise ValueError("it is no identity of a meterd node")
        version = body["storage_version"]
        if isinstance(version, int) and version > STORAGE_VERSION:
            raise BootFailed(
                endings.IDENTITY,
                f"{path} was written by a newer version (storage version {version}, this one"
                f" knows {STORAGE_VERSION}); install that version",
            )
        body = unseal(raw)
        del body["magic"]
        body["first_members"] = _first_members(body.get("first_members", ()))
        body["others"] = _others(body.get("others", ()))
        identity = Identity(**body)
        _check(identity)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BootFailed(endings.CORRUPT, f"{path} at offset 0: it is damaged: {error}") from error
    return identity
