"""Turns the bytes of a body into msgpack values and back, within limits.

What is dangerous about a body is not its size but what it becomes: an LZ4 block may claim
gigabytes, and a byte that says "empty map" takes 64 bytes of memory. So sizes are checked before
anything is decompressed, and in a large body elements are counted while it is decoded.

Text that is not UTF-8 is kept as it came, in surrogate escapes, because one bad text must fail its
event and not its batch: `text_bytes` gives back the bytes. The last of equal map keys wins.

Invariants: any bytes give a value or a RemoteProtocolError.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

import lz4.block
import msgpack

from meterd.protocol import limits
from meterd.protocol.errors import LocalProtocolError, RemoteProtocolError

# A body is read where it lies, which may be the memory of the message that it came in.
Bytes = bytes | memoryview

Container = TypeVar("Container", dict[Any, Any], list[Any])


class ItemCount:
    """Counts the elements of maps and lists while a body is decoded, and stops at the limit."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = limits.ITEMS_MAX

    def __call__(self, container: Container) -> Container:
        self.left -= len(container) + 1
        if self.left < 0:
            raise RemoteProtocolError(
                "too_large", f"the body has more than {limits.ITEMS_MAX} elements"
            )
        return container


def unpack(body: Bytes) -> object:
    """Decode one msgpack value.

    Raises RemoteProtocolError when the bytes are not one value within the limits.
    """
    hook = ItemCount() if len(body) > limits.ITEMS_UNCOUNTED_SIZE_MAX else None
    try:
        return msgpack.unpackb(
            body,
            raw=False,
            unicode_errors="surrogateescape",
            strict_map_key=True,
            object_hook=hook,
            list_hook=hook,
            max_str_len=limits.DECOMPRESSED_SIZE_MAX,
            max_bin_len=limits.DECOMPRESSED_SIZE_MAX,
            max_array_len=limits.LIST_SIZE_MAX,
            max_map_len=limits.MAP_SIZE_MAX,
            max_ext_len=0,
        )
    except ValueError as error:
        raise _refusal(f"{error!s:.200}") from None


def _refusal(said: str) -> RemoteProtocolError:
    """Tell a body with too much in it, which its sender can split, from one that is not msgpack."""
    if "exceeds max_array_len" in said or "exceeds max_map_len" in said:
        return RemoteProtocolError("too_large", f"too many elements in a list or map: {said}")
    return RemoteProtocolError("malformed", f"the body is not msgpack: {said}")


def unpack_answer(body: bytes) -> object:
    """Decode the body of an answer, whose lists are bounded by its size alone.

    Raises RemoteProtocolError when the bytes are not one value.
    """
    try:
        return msgpack.unpackb(
            body,
            raw=False,
            unicode_errors="surrogateescape",
            strict_map_key=False,
            max_ext_len=0,
        )
    except (ValueError, TypeError) as error:
        raise RemoteProtocolError("malformed", f"not msgpack: {error!s:.200}") from None


def pack(value: object) -> bytes:
    """Encode one msgpack value.

    Raises LocalProtocolError when the value is nothing that msgpack can say.
    """
    try:
        packed: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot be encoded: {error}") from error
    return packed


def open_body(body: Bytes, lz4_size: int | None) -> Bytes:
    """Return the body as it was before compression.

    Raises RemoteProtocolError when it is too large or not an LZ4 block of exactly that size.
    """
    if len(body) > limits.BODY_SIZE_MAX:
        raise RemoteProtocolError(
            "too_large", f"a body of {len(body)} bytes; the limit is {limits.BODY_SIZE_MAX}"
        )
    if lz4_size is None:
        return body
    if lz4_size > limits.DECOMPRESSED_SIZE_MAX:
        raise RemoteProtocolError(
            "too_large",
            f"a body of {lz4_size} bytes before compression;"
            f" the limit is {limits.DECOMPRESSED_SIZE_MAX}",
        )
    if lz4_size > len(body) * limits.LZ4_RATIO_MAX:
        raise RemoteProtocolError("malformed", "no LZ4 block of this size holds that much")
    try:
        opened: bytes = lz4.block.decompress(body, uncompressed_size=lz4_size)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise RemoteProtocolError("malformed", f"not an LZ4 block: {error}") from None
    if len(opened) != lz4_size:
        raise RemoteProtocolError("malformed", f"lz4 says {lz4_size} bytes, found {len(opened)}")
    return opened


def text_bytes(text: str) -> bytes:
    """Return the bytes a text had on the wire, whether or not they were UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def unknown_name(names: Iterable[object], known: Iterable[str], where: str) -> str:
    """Return a message about the first name that is not known, and the known one nearest to it."""
    known = sorted(known)
    unknown = min(str(name) for name in names if name not in known)
    nearest = get_close_matches(unknown[:64], known, n=1)
    return f"{where} {unknown!r:.80} is unknown" + (
        f"; did you mean {nearest[0]!r}?" if nearest else ""
    )
