"""The frame that every message between nodes begins with, and the frames attached to it.

docs/PROTOCOL.md, "Between nodes", describes the bytes.  A message is one frame with a header and
all that is small, under one CRC-32C, and as many frames of payload as it says.  Here is what all
kinds of message share; `raft_wire` knows what is inside an envelope.

Invariants:
  * any bytes give a Header or a RemoteProtocolError, and nothing is allocated before its size is
    checked
  * magic and version stay where they are in every version, so that versions are told apart
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from crc32c import crc32c

from meterd.protocol.errors import RemoteProtocolError

MAGIC: Final = b"MNOD"
VERSION: Final = 1
ENVELOPE, NOTE = 1, 2
KINDS: Final = (ENVELOPE, NOTE)

HEADER_SIZE: Final = 96
# The first frame: heads of records and columns, 300 bytes for each group at most.
FIRST_FRAME_SIZE_MAX: Final = 4 << 20
# One attached frame: a record's payload, a piece of a snapshot.  It is also ZeroMQ's MAXMSGSIZE.
FRAME_SIZE_MAX: Final = 64 << 20
# Frames of one message, and their bytes.
FRAMES_MAX: Final = 1 + 1_024
MESSAGE_SIZE_MAX: Final = 128 << 20
# Numbers stay below this: sums of two of them fit in 64 bits.
NUMBER_MAX: Final = (1 << 62) - 1

_HEADER: Final = struct.Struct("<4sHH16s7QIII")
_CRC: Final = struct.Struct("<I")

Frame = bytes | memoryview


class Header(NamedTuple):
    """What a message says about itself."""

    kind: int  # ENVELOPE or NOTE
    cluster: int
    source: int  # member
    target: int  # member
    boot: int  # of the sender
    block: int  # durable at the sender
    sequence: int  # of this message among those of the same boot and connection
    heard_boot: int  # the boot of the target that `heard` is about; 0: none heard of yet
    heard: int  # highest sequence that the sender has from the target's bulk connection
    sections: int  # of an envelope: how many sections follow
    frames: int  # attached


class Note(NamedTuple):
    """A message of one actor to an actor of another node; what its frames mean they know."""

    cluster: int
    source: int
    target: int
    boot: int
    frames: Sequence[Any]


def encode_first(header: Header, sizes: Sequence[int], content: bytes) -> bytes:
    """Return the first frame; `content` (8-byte aligned) lies behind the sizes of the others."""
    table = struct.pack(f"<{len(sizes)}I", *sizes)
    table = table.ljust((len(table) + 7) & -8, b"\0")
    fixed = _HEADER.pack(
        MAGIC,
        VERSION,
        header.kind,
        header.cluster.to_bytes(16, "little"),
        *header[2:9],
        header.sections,
        header.frames,
        HEADER_SIZE + len(table) + len(content),
    )
    body = table + content
    return fixed + _CRC.pack(crc32c(body, crc32c(fixed))) + body


def parse_header(frame: Frame) -> Header:
    """Return the header of a message whose first frame has checked.  Raises RemoteProtocolError.

    Another version has the code `unsupported_version`; it is told apart before anything else.
    """
    if len(frame) < HEADER_SIZE:
        raise RemoteProtocolError("malformed", f"a first frame of {len(frame)} bytes")
    magic, version, kind, cluster, *numbers, sections, frames, size = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise RemoteProtocolError("malformed", "no message of a node (magic)")
    if version != VERSION:
        raise RemoteProtocolError("unsupported_version", f"version {version} between nodes")
    if len(frame) > FIRST_FRAME_SIZE_MAX:
        raise RemoteProtocolError("too_large", f"a first frame of {len(frame)} bytes")
    (crc,) = _CRC.unpack_from(frame, _HEADER.size)
    view = memoryview(frame)
    if size != len(frame) or crc != crc32c(view[HEADER_SIZE:], crc32c(view[: _HEADER.size])):
        raise RemoteProtocolError("malformed", "first frame: size or checksum")
    if kind not in KINDS or max(numbers) > NUMBER_MAX or size % 8:
        raise RemoteProtocolError("malformed", "first frame: kind, size or a number too large")
    return Header._make([kind, int.from_bytes(cluster, "little"), *numbers, sections, frames])


def parse_attached(header: Header, frames: Sequence[Frame]) -> int:
    """Check the attached frames against the table of their sizes; return where that ends."""
    first, attached = frames[0], frames[1:]
    count = header.frames
    end = HEADER_SIZE + (4 * count + 7 & -8)
    if count != len(attached) or count >= FRAMES_MAX or end > len(first):
        raise RemoteProtocolError("malformed", f"{len(attached)} frames where {count} belong")
    sizes = list(struct.unpack_from(f"<{count}I", first, HEADER_SIZE))
    if sizes != list(map(len, attached)):
        raise RemoteProtocolError("malformed", "a frame is not as large as it should be")
    if max(sizes, default=0) > FRAME_SIZE_MAX or sum(sizes) > MESSAGE_SIZE_MAX:
        raise RemoteProtocolError("too_large", f"a message of {sum(sizes)} bytes")
    return end


def encode_note(note: Note, sequence: int = 0, heard_boot: int = 0, heard: int = 0) -> list[Any]:
    """Return the frames of a note; its own frames follow the first as they are."""
    sizes = [memoryview(frame).nbytes for frame in note.frames]
    crcs = np.array([crc32c(frame) for frame in note.frames], "<u4").tobytes()
    header = Header(
        NOTE,
        note.cluster,
        note.source,
        note.target,
        note.boot,
        0,
        sequence,
        heard_boot,
        heard,
        0,
        len(sizes),
    )
    first = encode_first(header, sizes, crcs.ljust((len(crcs) + 7) & -8, b"\0"))
    return [first, *note.frames]


def decode_note(header: Header, frames: Sequence[Frame]) -> Note:
    """Return a note whose frames have checked.  Raises RemoteProtocolError."""
    at = parse_attached(header, frames)
    attached = frames[1:]
    if len(frames[0]) - at != (4 * len(attached) + 7) & -8:
        raise RemoteProtocolError("malformed", "a note has a checksum for each frame")
    crcs = np.frombuffer(frames[0], "<u4", len(attached), at).tolist()
    if crcs != [crc32c(frame) for frame in attached]:
        raise RemoteProtocolError("malformed", "a frame of a note: checksum")
    return Note(header.cluster, header.source, header.target, header.boot, attached)
