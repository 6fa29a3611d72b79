"""Reads and writes the header of requests and answers, the part that every message has.

A header is decoded for each request, however small, so this is kept to a few microseconds: sizes
first, one msgpack call with every limit set, one look at each key. Keys this version does not know
are ignored, so a later one can add some; a missing or wrong one is an error, and when the request
id could be read the error carries it, so it can be answered.

Invariants:
  * any bytes give a header or a RemoteProtocolError;
  * nothing of a body is decoded or decompressed here.
"""

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

import msgpack

from meterd.protocol import limits
from meterd.protocol.errors import LocalProtocolError, RemoteProtocolError
from meterd.protocol.versions import PROTOCOL_VERSION, PROTOCOL_VERSIONS

STATUSES = ("ok", "error")
MAP_VERSION_MAX = 2**63 - 1
HOPS_MAX = 255
# Headers keep few enough kinds and map versions apart for all their prefixes to stay.
PREFIXES_MAX = 256
U64 = Struct(">Q")


class RequestHeader(NamedTuple):
    """What a request says about itself."""

    id: int
    kind: str
    deadline_ms: int = limits.DEADLINE_MS_DEFAULT  # how long the client still waits
    map_version: int | None = None  # of the partition map the client knows
    lz4_size: int | None = None  # size of the body before compression, when it is compressed
    hops: int = 0  # how many nodes have passed it on


class AnswerHeader(NamedTuple):
    """What an answer says about itself; its id is None when the request's could not be read."""

    id: int | None
    kind: str
    status: str  # "ok" or "error"
    map_version: int


def decode_request(frames: Sequence[bytes]) -> tuple[RequestHeader, bytes]:
    """Return header and body, still encoded, of the frames behind the routing id.

    Raises RemoteProtocolError, with the request's id when there is one.
    """
    header = decode_request_header(_header_frame(frames))
    body = frames[1]
    if len(body) > limits.BODY_SIZE_MAX:
        raise RemoteProtocolError(
            "too_large",
            f"a body of {len(body)} bytes; the limit is {limits.BODY_SIZE_MAX}",
            header.id,
        )
    return header, body


def decode_answer(frames: Sequence[bytes]) -> tuple[AnswerHeader, bytes]:
    """Return header and body, still encoded, of an answer, or raise RemoteProtocolError."""
    header = decode_answer_header(_header_frame(frames))
    if len(frames[1]) > limits.ANSWER_SIZE_MAX:
        raise RemoteProtocolError(
            "too_large",
            f"a body of {len(frames[1])} bytes; the limit is {limits.ANSWER_SIZE_MAX}",
            header.id,
        )
    return header, frames[1]


def decode_request_header(frame: bytes) -> RequestHeader:
    """Return the header of a request.

    Raises RemoteProtocolError, with the request's id when there is one.
    """
    fields = _fields(frame)
    get = fields.get
    request_id = get("id")
    if type(request_id) is not int or request_id < 0:
        raise RemoteProtocolError("malformed", "header: id is missing or no uint64")
    version = get("v")
    if version != PROTOCOL_VERSION or type(version) is not int:
        raise _unsupported(version, request_id)
    kind = get("kind")
    if type(kind) is not str or len(kind) > limits.KIND_SIZE_MAX:
        raise RemoteProtocolError("malformed", "header: kind is missing or no kind", request_id)
    deadline = get("deadline", limits.DEADLINE_MS_DEFAULT)
    if type(deadline) is not int or not 0 <= deadline <= limits.DEADLINE_MS_MAX:
        raise RemoteProtocolError(
            "malformed",
            f"header: deadline is no number of milliseconds up to {limits.DEADLINE_MS_MAX}",
            request_id,
        )
    map_version = get("map")
    if map_version is not None and not _is_count(map_version):
        raise RemoteProtocolError("malformed", "header: map is no version", request_id)
    lz4_size = get("lz4")
    if lz4_size is not None and not _is_count(lz4_size):
        raise RemoteProtocolError("malformed", "header: lz4 is no size", request_id)
    hops = get("hops", 0)
    if type(hops) is not int or not 0 <= hops <= HOPS_MAX:
        raise RemoteProtocolError("malformed", "header: hops is no number", request_id)
    return RequestHeader(request_id, kind, deadline, map_version, lz4_size, hops)


def decode_answer_header(frame: bytes) -> AnswerHeader:
    """Return the header of an answer, or raise RemoteProtocolError."""
    fields = _fields(frame)
    request_id = fields.get("id")
    if request_id is not None and (type(request_id) is not int or request_id < 0):
        raise RemoteProtocolError("malformed", "header: id is no uint64")
    version = fields.get("v")
    if version != PROTOCOL_VERSION or type(version) is not int:
        raise _unsupported(version, request_id)
    kind, status, map_version = fields.get("kind"), fields.get("status"), fields.get("map")
    if type(kind) is not str or type(status) is not str or status not in STATUSES:
        raise RemoteProtocolError("malformed", "header: kind or status is wrong", request_id)
    if type(map_version) is not int or not _is_count(map_version):
        raise RemoteProtocolError("malformed", "header: map is no version", request_id)
    return AnswerHeader(request_id, kind, status, map_version)


def encode_request(header: RequestHeader, body: bytes) -> list[bytes]:
    """Return the two frames of a request, or raise LocalProtocolError when a node would refuse."""
    fields: dict[str, object] = {
        "v": PROTOCOL_VERSION,
        "id": header.id,
        "kind": header.kind,
        "deadline": header.deadline_ms,
    }
    if header.map_version is not None:
        fields["map"] = header.map_version
    if header.lz4_size is not None:
        fields["lz4"] = header.lz4_size
    if header.hops:
        fields["hops"] = header.hops
    try:
        frame: bytes = msgpack.packb(fields)
        decode_request_header(frame)
    except (RemoteProtocolError, TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot be sent: {error}") from error
    if len(body) > limits.BODY_SIZE_MAX:
        raise LocalProtocolError(
            f"a body of {len(body)} bytes; the limit is {limits.BODY_SIZE_MAX}"
        )
    return [frame, body]


def encode_answer(header: AnswerHeader, body: bytes) -> list[bytes]:
    """Return the two frames of an answer."""
    prefix = _answer_prefix(header.kind, header.status, header.map_version)
    if header.id is None:
        return [prefix + b"\xc0", body]
    return [prefix + b"\xcf" + U64.pack(header.id), body]


def with_map_version(frame: bytes, version: int) -> bytes:
    """Return an answer's header, one that `encode_answer` made, with another map version."""
    has_id = frame[-9:-8] == b"\xcf" and frame[-12:-9] == b"\xa2id"
    size = 9 if has_id else 1
    return _with_version(frame[:-size], version) + frame[-size:]


@lru_cache(maxsize=PREFIXES_MAX)
def _with_version(prefix: bytes, version: int) -> bytes:
    fields = msgpack.unpackb(prefix + b"\0")
    return _answer_prefix(fields["kind"], fields["status"], version)


@lru_cache(maxsize=PREFIXES_MAX)
def _answer_prefix(kind: str, status: str, map_version: int) -> bytes:
    """Return the header of an answer up to its id, which is the last of the five keys."""
    fields = {"v": PROTOCOL_VERSION, "kind": kind, "status": status, "map": map_version, "id": 0}
    frame: bytes = msgpack.packb(fields)
    return frame[:-1]


def _header_frame(frames: Sequence[bytes]) -> bytes:
    if len(frames) != limits.FRAME_COUNT:
        raise RemoteProtocolError(
            "malformed", f"{len(frames)} frames instead of {limits.FRAME_COUNT}"
        )
    return frames[0]


def _fields(frame: bytes) -> dict[str, Any]:
    if len(frame) > limits.HEADER_SIZE_MAX:
        raise RemoteProtocolError(
            "too_large", f"a header of {len(frame)} bytes; the limit is {limits.HEADER_SIZE_MAX}"
        )
    try:
        fields = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.HEADER_SIZE_MAX,
            max_bin_len=limits.HEADER_SIZE_MAX,
            max_array_len=limits.HEADER_SIZE_MAX,
            max_map_len=limits.HEADER_SIZE_MAX,
            max_ext_len=0,
        )
    except ValueError as error:
        raise RemoteProtocolError("malformed", f"header: not msgpack: {error!s:.200}") from None
    if type(fields) is not dict:
        raise RemoteProtocolError("malformed", "header: not a map")
    return fields


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number <= MAP_VERSION_MAX


def _unsupported(version: object, request_id: int | None) -> RemoteProtocolError:
    spoken = ", ".join(map(str, PROTOCOL_VERSIONS))
    return RemoteProtocolError(
        "unsupported_version",
        f"header: protocol version {version!r:.40}; this node speaks {spoken}",
        request_id,
    )
