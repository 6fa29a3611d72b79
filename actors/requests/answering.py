"""Collects answers to clients and sends them to the router, many in one message."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meterd.actors.actor import Actor
from meterd.actors.frames.bundle import bundle
from meterd.actors.frames.sockets import Frame
from meterd.protocol import body as bodies
from meterd.protocol.envelope import U64, AnswerHeader, encode_answer
from meterd.protocol.errors import error_body

# One node owns every partition; a cluster's map replaces this constant.
MAP_VERSION = 1


def answer_frames(request_id: int | None, kind: str, body: bytes) -> list[bytes]:
    """Return header and body of a good answer."""
    return encode_answer(AnswerHeader(request_id, kind, "ok", MAP_VERSION), body)


def error_frames(request_id: int | None, kind: str, error: BaseException) -> list[bytes]:
    """Return header and body of an error answer."""
    header = AnswerHeader(request_id, kind, "error", MAP_VERSION)
    return encode_answer(header, bodies.pack(error_body(error)))


# The header of a good answer to an ingest request, up to the eight bytes of its id.
_INGESTED = answer_frames(0, "ingest", b"")[0][: -U64.size]


class Answers:
    """Answers of one turn; `send` hands them over."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._frames: list[Frame] = []  # (rid, header, body) repeated

    def ok(self, rid: bytes, request_id: int, kind: str, body: bytes) -> None:
        """Answer with an encoded body."""
        self._frames.append(rid)
        self._frames += answer_frames(request_id, kind, body)

    def result(self, rid: bytes, request_id: int, kind: str, result: dict[str, Any]) -> None:
        """Answer with a result."""
        self.ok(rid, request_id, kind, bodies.pack(result))

    def error(self, rid: bytes, request_id: int | None, kind: str, error: BaseException) -> None:
        """Answer with an error."""
        self._frames.append(rid)
        self._frames += error_frames(request_id, kind, error)

    def ingested(self, rid: bytes, request_id: int, body: bytes) -> None:
        """Answer an ingest request with an encoded result: `ok`, for the way of most requests."""
        self._frames += (rid, _INGESTED + U64.pack(request_id), body)

    def add(self, frames: Iterable[Frame]) -> None:
        """Add answers made elsewhere: (rid, header, body) repeated."""
        self._frames += frames

    @property
    def empty(self) -> bool:
        """Is there nothing to hand over?"""
        return not self._frames

    def take(self) -> list[Frame]:
        """Return the answers, (rid, header, body) repeated, and keep none."""
        frames, self._frames = self._frames, []
        return frames

    def send(self) -> None:
        """Hand everything to the router."""
        if self._frames:
            self._actor.send("router", [b"answers", *bundle(self.take())])
