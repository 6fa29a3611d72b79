"""Reads and writes a checkpoint: a manifest and the arrays it names, each with its checksum.

Layout (docs/STORAGE.md): magic, version, manifest size and checksum, the manifest (msgpack), zeros
to a multiple of 64, then the sections one after another, each at a multiple of 64.  The manifest
says where each section lies, of what type and shape it is, and its CRC-32C.

Invariant: any bytes give a checkpoint or Damaged; a section is handed out only when it checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any

import msgpack
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.protocol.log_format import Bytes, Damaged, padded

MAGIC = b"METERDCP"
VERSION = 2
ALIGNMENT = 64
_HEAD = Struct(
    "<8sHHIII"
)  # magic, version, reserved, manifest size, manifest crc, crc of this head
_HEAD_CRC_AT = _HEAD.size - 4
MANIFEST_SIZE_MAX = 256 * 1024 * 1024


def encode(state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> list[Bytes]:
    """Return a checkpoint as buffers to be written one after another; arrays are not copied."""
    sections = []
    at = 0
    for name, array in arrays.items():
        sections.append(
            {
                "name": name,
                "dtype": array.dtype.str,
                "shape": list(array.shape),
                "offset": at,
                "crc": crc32c(_raw(array)),
            }
        )
        at += padded(array.nbytes, ALIGNMENT)
    manifest = msgpack.packb({"state": dict(state), "sections": sections})
    head = _HEAD.pack(MAGIC, VERSION, 0, len(manifest), crc32c(manifest), 0)[:_HEAD_CRC_AT]
    start = padded(_HEAD.size + len(manifest), ALIGNMENT)
    front = (head + crc32c(head).to_bytes(4, "little") + manifest).ljust(start, b"\0")
    buffers: list[Bytes] = [front]
    for array in arrays.values():
        buffers += [_raw(array), bytes(padded(array.nbytes, ALIGNMENT) - array.nbytes)]
    return buffers


def read_state(buffer: Bytes) -> dict[str, Any]:
    """Return the state of a checkpoint without its arrays.  Raises Damaged."""
    state: dict[str, Any] = _manifest(buffer)[0]["state"]
    return state


def decode(buffer: Bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return state and arrays (views of the buffer) of a checkpoint.  Raises Damaged."""
    manifest, start = _manifest(buffer)
    view = memoryview(buffer)
    arrays = {}
    for section in manifest["sections"]:
        dtype, shape = np.dtype(section["dtype"]), tuple(section["shape"])
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        at = start + section["offset"]
        raw = view[at : at + size]
        if len(raw) != size or crc32c(raw) != section["crc"]:
            raise Damaged(at, f"checkpoint section {section['name']}")
        arrays[section["name"]] = np.frombuffer(raw, dtype).reshape(shape)
    return manifest["state"], arrays


def _manifest(buffer: Bytes) -> tuple[dict[str, Any], int]:
    view = memoryview(buffer)
    if len(view) < _HEAD.size:
        raise Damaged(0, "checkpoint shorter than its head")
    magic, version, _, size, manifest_crc, head_crc = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise Damaged(0, "not a checkpoint (magic)")
    if head_crc != crc32c(view[:_HEAD_CRC_AT]) or size > MANIFEST_SIZE_MAX:
        raise Damaged(0, "checkpoint head checksum")
    if version != VERSION:
        raise Damaged(0, f"checkpoint version {version} is not known")
    raw = view[_HEAD.size : _HEAD.size + size]
    if len(raw) != size or crc32c(raw) != manifest_crc:
        raise Damaged(_HEAD.size, "checkpoint manifest checksum")
    return msgpack.unpackb(raw, strict_map_key=False), padded(_HEAD.size + size, ALIGNMENT)


def _raw(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
