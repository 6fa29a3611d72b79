"""Keeps what this node has heard of other nodes' logs, so that it holds over a restart of all.

Who has heard of a later block than a started node has knows that its directory is an older copy
(`core/raft/standing.py`).  The file, `heard.json`, may be a few seconds old: an older one knows of
fewer blocks, and so at worst lets a node pass that has gone back by no more than that.  It never
accuses a node that has not gone back, because it says which start of it each block belongs to.

Beside that it keeps where the other nodes are.  The members are a part of the state, which a start
has as its last checkpoint had it; the log behind that may name nodes that came since, and counts
only when these have confirmed it.

It is written beside the loop, so beats never wait for the disk, and at a stop.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from meterd.actors.files import disk
from meterd.actors.machine.background import Background
from meterd.core.raft.standing import Heard
from meterd.protocol.errors import DiskFull

HEARD_FILE = "heard.json"
FORMAT_VERSION = 1
# How often it is written at most, while anything changes.
WRITE_SECONDS = 5.0
# Members that it names at most; a cluster has few, and each lost directory leaves one more.
MEMBERS_MAX = 1_024

logger = logging.getLogger(__name__)


class Places(NamedTuple):
    """Where the nodes of a cluster are."""

    version: int  # of the members that say so
    addresses: Mapping[int, str]  # of replication, by node


NOWHERE: Final = Places(0, {})


class HeardFile:
    """The file of a data directory; `turn` and `close` write it."""

    def __init__(self, data_dir: str) -> None:
        self._path = Path(data_dir, HEARD_FILE)
        self.heard, self.places = _read(self._path)  # as they were at the start
        self._written: tuple[Mapping[int, Heard], Places] = dict(self.heard), self.places
        self._lane: Background[None] = Background("heard")
        self._due = 0.0
        self._full = False

    def turn(
        self, now: float, heard: Mapping[int, Heard], tell: Callable[[], Places] = lambda: NOWHERE
    ) -> None:
        """Begin to write what is new, when that is due.  Raises what writing raises.

        tell: returns where the nodes are.
        """
        self._lane.take()
        if now < self._due or self._lane.busy:
            return
        places = self._newest(tell())
        if (heard, places) == self._written:
            return
        self._due = now + WRITE_SECONDS
        kept = dict(heard)
        self._written = kept, places
        self._lane.start(lambda: self._write(kept, places))

    def close(self, heard: Mapping[int, Heard], places: Places = NOWHERE) -> None:
        """Write the last of it."""
        self._lane.take(wait=True)
        places = self._newest(places)
        if (heard, places) != self._written:
            self._write(heard, places)

    def _newest(self, places: Places) -> Places:
        """A state that has not caught up yet knows less than is kept already."""
        return places if places.version >= self.places.version else self.places

    def _write(self, heard: Mapping[int, Heard], places: Places) -> None:
        members = {str(member): list(one) for member, one in sorted(heard.items())[-MEMBERS_MAX:]}
        addresses = {str(node): place for node, place in sorted(places.addresses.items())}
        document = {
            "format": FORMAT_VERSION,
            "members": members,
            "places": {"version": places.version, "addresses": addresses},
        }
        try:
            disk.atomic_write(self._path, json.dumps(document).encode() + b"\n")
            self._full = False
        except DiskFull as full:
            if not self._full:
                logger.warning("what was heard of other nodes is not kept: %s", full)
            self._full = True


def _read(path: Path) -> tuple[dict[int, Heard], Places]:
    """Return what a file says; nothing where there is none, or where it cannot be read."""
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT_VERSION:
            raise ValueError(f"format {document['format']}")
        heard = {
            int(member): (int(boot), int(block), int(before))
            for member, (boot, block, before) in document["members"].items()
        }
        return heard, _places(document.get("places"))
    except FileNotFoundError:
        return {}, NOWHERE
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read, so what was heard is forgotten: %r", path, error)
        return {}, NOWHERE


def places_in(data_dir: str) -> Mapping[int, str]:
    """Return where the nodes were when that was written last."""
    return _read(Path(data_dir, HEARD_FILE))[1].addresses


def _places(said: Any) -> Places:
    """Read where nodes are; files of earlier versions do not say."""
    if said is None:
        return NOWHERE
    addresses = {int(node): str(address) for node, address in said["addresses"].items() if address}
    return Places(int(said["version"]), addresses)
