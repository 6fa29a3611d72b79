"""Actors in the test's own process: what they send is kept instead of sent.

Everything else is the real thing: files, clocks, the bytes of messages.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack

from meterd.actors.actor import Actor, Lifeline
from meterd.actors.frames.bundle import unbundle
from meterd.actors.options import Options
from meterd.actors.starting import identity
from meterd.actors.starting.identity import Identity
from meterd.protocol.body import unpack_answer
from meterd.protocol.envelope import RequestHeader, decode_answer, encode_request
from tests.support.log_builder import CLUSTER_ID, IDENTITY_KEY


def recorded(cls: type[Actor], path: Path, incarnation: int = 1, **sections: dict[str, Any]) -> Any:
    """An opened actor on a data directory; `actor.sent` holds (to whom, frames)."""

    class Recorded(cls):  # type: ignore[misc, valid-type]
        def send(self, actor: str, frames: list[bytes]) -> None:
            self.sent.append((actor, frames))

        def close(self) -> None:
            super().close()
            os.close(lifeline[0])
            os.close(lifeline[1])

        def take(self, kind: bytes) -> list[tuple[str, list[bytes]]]:
            """Messages of a kind sent since the last call."""
            found = [one for one in self.sent if one[1][0] == kind]
            self.sent = [one for one in self.sent if one[1][0] != kind]
            return found

    Recorded.__name__ = cls.__name__
    who = Identity(1, CLUSTER_ID.hex(), IDENTITY_KEY.hex(), incarnation, 1, "")
    (path / identity.FILE_NAME).write_bytes(identity.encode(who))
    options = Options.from_mapping({"node": {"data_dir": str(path)}} | sections)
    lifeline = os.pipe()
    actor = Recorded(options, str(path), Lifeline(lifeline[1]))
    actor.sent = []
    actor.open()
    return actor


def request(kind: str, body: dict[str, Any], request_id: int = 1, **header: Any) -> list[bytes]:
    """Header and body of a request as the router passes them on."""
    return encode_request(RequestHeader(request_id, kind, **header), msgpack.packb(body))


def answers(actor: Any) -> list[tuple[str, Any]]:
    """(status, body) of the answers sent to the router since the last call."""
    found = []
    for to, frames in actor.take(b"answers"):
        assert to == "router"
        for _, *answer in unbundle(frames[1:]):
            header, body = decode_answer(answer)
            found.append((header.status, unpack_answer(body)))
    return found
