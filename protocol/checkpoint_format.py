"""Reads and writes a checkpoint: a manifest and the arrays it names, each with its checksum.

Layout (docs/STORAGE.md): magic, version, manifest size and checksum, the manifest (msgpack), zeros
to a multiple of 64, then the sections one after another, each at a multiple of 64.  The manifest
says where each section lies, of what type and shape it is; its CRC-32C stands behind it, so that a
section can be written while it is still being put together.  (In version 2 it stood in the
manifest.)

Invariant: any bytes give a checkpoint or Damaged; a section is handed out only when it checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple

import msgpack
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.protocol.log_format import Bytes, Damaged, padded

MAGIC = b"METERDCP"
VERSION = 3
CRC_SIZE = 4
ALIGNMENT = 64
_HEAD = Struct(
    "<8sHHIII"
)  # magic, version, reserved, manifest size, manifest crc, crc of this head
_HEAD_CRC_AT = _HEAD.size - 4
HEAD_SIZE = _HEAD.size
MANIFEST_SIZE_MAX = 256 * 1024 * 1024


class Section(NamedTuple):
    """One array of a checkpoint, without its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0  # in the file; where it is written follows from those before it
    crc: int | None = None  # as the manifest of version 2 says it

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def whole_size(self) -> int:
        """Its size with checksum and padding."""
        return padded(self.size + (CRC_SIZE if self.crc is None else 0), ALIGNMENT)


def section_of(name: str, array: NDArray[Any]) -> Section:
    """Describe an array."""
    return Section(name, array.dtype.str, array.shape)


def encode(state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> list[Bytes]:
    """Return a checkpoint as buffers to be written one after another; arrays are not copied."""
    sections = [(section_of(name, array), [_raw(array)]) for name, array in arrays.items()]
    return list(encoded(state, sections))


def encoded(
    state: Mapping[str, Any], sections: Sequence[tuple[Section, Iterable[Bytes]]]
) -> Iterator[Bytes]:
    """Yield a checkpoint piece by piece; what a section consists of is asked for in its turn."""
    yield _front(state, [section for section, _ in sections])
    for section, pieces in sections:
        crc = 0
        for piece in pieces:
            crc = crc32c(piece, crc)
            yield piece
        yield crc.to_bytes(CRC_SIZE, "little").ljust(section.whole_size - section.size, b"\0")


def _front(state: Mapping[str, Any], sections: Iterable[Section]) -> bytes:
    described = []
    at = 0
    for section in sections:
        described.append(
            {
                "name": section.name,
                "dtype": section.dtype,
                "shape": list(section.shape),
                "offset": at,
            }
        )
        at += section.whole_size
    manifest = msgpack.packb({"state": dict(state), "sections": described})
    head = _HEAD.pack(MAGIC, VERSION, 0, len(manifest), crc32c(manifest), 0)[:_HEAD_CRC_AT]
    start = padded(_HEAD.size + len(manifest), ALIGNMENT)
    return (head + crc32c(head).to_bytes(4, "little") + manifest).ljust(start, b"\0")


def front_size(head: Bytes) -> int:
    """Return how many bytes stand before the sections.  Raises Damaged."""
    return padded(_HEAD.size + _sizes(memoryview(head))[0], ALIGNMENT)


def read_front(buffer: Bytes) -> tuple[dict[str, Any], list[Section]]:
    """Return the state of a checkpoint and what its sections are.  Raises Damaged."""
    manifest, start = _manifest(buffer)
    sections = [
        Section(found["name"], found["dtype"], tuple(found["shape"]), at, found.get("crc"))
        for found in manifest["sections"]
        for at in (start + found["offset"],)
    ]
    return manifest["state"], sections


def check_front(buffer: Bytes) -> None:
    """Check the front and the size, but not the bytes of sections.  Raises Damaged."""
    _, sections = read_front(buffer)
    ends = [section.offset + section.whole_size for section in sections]
    end = max(ends, default=front_size(buffer))
    if len(memoryview(buffer)) != end:
        raise Damaged(min(len(memoryview(buffer)), end), f"not the {end} bytes that it says it has")


def read_state(buffer: Bytes) -> dict[str, Any]:
    """Return the state of a checkpoint without its arrays.  Raises Damaged."""
    state: dict[str, Any] = _manifest(buffer)[0]["state"]
    return state


def decode(buffer: Bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return state and arrays (views of the buffer) of a checkpoint.  Raises Damaged."""
    state, sections = read_front(buffer)
    arrays = {}
    for section in sections:
        raw = check_section(buffer, section)
        arrays[section.name] = np.frombuffer(raw, section.dtype).reshape(section.shape)
    return state, arrays


def check_section(buffer: Bytes, section: Section) -> memoryview:
    """Return the bytes of a section.  Raises Damaged."""
    view, end = memoryview(buffer), section.offset + section.size
    raw, crc = view[section.offset : end], section.crc
    if crc is None:
        crc = int.from_bytes(view[end : end + CRC_SIZE], "little")
    if len(view) < end + CRC_SIZE * (section.crc is None) or crc32c(raw) != crc:
        raise Damaged(section.offset, f"checkpoint section {section.name}")
    return raw


def _sizes(view: memoryview) -> tuple[int, int]:
    """Return size and crc of the manifest, from a head that checks.  Raises Damaged."""
    if len(view) < _HEAD.size:
        raise Damaged(0, "checkpoint shorter than its head")
    magic, version, _, size, manifest_crc, head_crc = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise Damaged(0, "not a checkpoint (magic)")
    if head_crc != crc32c(view[:_HEAD_CRC_AT]) or size > MANIFEST_SIZE_MAX:
        raise Damaged(0, "checkpoint head checksum")
    if version not in (2, VERSION):
        raise Damaged(0, f"checkpoint version {version} is not known")
    return size, manifest_crc


def _manifest(buffer: Bytes) -> tuple[dict[str, Any], int]:
    view = memoryview(buffer)
    size, manifest_crc = _sizes(view)
    raw = view[_HEAD.size : _HEAD.size + size]
    if len(raw) != size or crc32c(raw) != manifest_crc:
        raise Damaged(_HEAD.size, "checkpoint manifest checksum")
    return msgpack.unpackb(raw, strict_map_key=False), padded(_HEAD.size + size, ALIGNMENT)


def _raw(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
