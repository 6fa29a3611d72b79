"""Collects answers to clients and sends them to the router, many in one message."""

from __future__ import annotations

from typing import Any

from meterd.actors.actor import Actor
from meterd.protocol import body as bodies
from meterd.protocol.envelope import AnswerHeader, encode_answer
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


class Answers:
    """Answers of one turn; `send` hands them over."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._frames: list[bytes] = [b"answers"]

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

    def add(self, frames: list[bytes]) -> None:
        """Add answers made elsewhere: (rid, header, body) repeated."""
        self._frames += frames

    def take(self) -> list[bytes]:
        """Return the answers, (rid, header, body) repeated, and keep none."""
        frames, self._frames = self._frames[1:], [b"answers"]
        return frames

    def send(self) -> None:
        """Hand everything to the router."""
        if len(self._frames) > 1:
            self._actor.send("router", self._frames)
            self._frames = [b"answers"]
