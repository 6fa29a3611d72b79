"""Reads and writes the header of requests and answers."""

from typing import NamedTuple


class RequestHeader(NamedTuple):
    """What a request says about itself."""

    id: int
    kind: str
    deadline_ms: int  # how long the client still waits
    map_version: int | None  # of the partition map the client knows
    lz4_size: int | None  # size of the body before compression, when it is compressed


class AnswerHeader(NamedTuple):
    """What an answer says about itself."""

    id: int
    kind: str
    status: str  # "ok" or "error"
    map_version: int
