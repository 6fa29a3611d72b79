"""The two hash functions of meterd, for use inside kernels.

* SipHash-1-3 with 128 bits of output (Aumasson and Bernstein 2012; the 128-bit variant of the
  reference code), over messages made of 64-bit words.  Texts enter as their length and then their
  bytes, zero-extended to whole words, so no two different messages have the same words.
* XXH64 (Collet), seed 0, which clients use, too, to place an account's root in a partition.

`sip_words` and friends thread the four state words by hand: numba keeps them in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

Array = Any

# The public key of the hash chain: the first 16 bytes of b"meterd hash chain", little-endian.
CHAIN_KEY_0 = np.uint64(int.from_bytes(b"meterd h", "little"))
CHAIN_KEY_1 = np.uint64(int.from_bytes(b"ash chai", "little"))

PARTITION_COUNT = 256

_U64 = np.uint64
_MASK_BYTE = np.uint64(0xFF)


def _load(bits: int, context: Any, builder: Any, sig: Any, args: Any) -> Any:
    data = make_array(sig.args[0])(context, builder, args[0]).data
    pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(bits).as_pointer())
    loaded = builder.load(pointer)
    loaded.align = 1
    return loaded


@intrinsic
def load_u64(typing_context: Any, array: Any, index: Any) -> Any:
    """Load 8 bytes of a uint8 array from any (unaligned) index; the caller checks the bounds."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load(64, context, builder, sig, args)

    return types.uint64(array, types.int64), generate


@intrinsic
def load_u32(typing_context: Any, array: Any, index: Any) -> Any:
    """Load 4 bytes of a uint8 array from any (unaligned) index; the caller checks the bounds."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load(32, context, builder, sig, args)

    return types.uint32(array, types.int64), generate


@intrinsic
def load_u16(typing_context: Any, array: Any, index: Any) -> Any:
    """Load 2 bytes of a uint8 array from any (unaligned) index; the caller checks the bounds."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load(16, context, builder, sig, args)

    return types.uint16(array, types.int64), generate


@intrinsic
def store_u64(typing_context: Any, array: Any, index: Any, word: Any) -> Any:
    """Store 8 bytes in a uint8 array at any (unaligned) index; the caller checks the bounds."""
    signature = types.void(array, types.int64, types.uint64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = make_array(sig.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer())
        builder.store(args[2], pointer).align = 1
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask the processor to bring the row at `index` of a 2-D array into its cache."""
    signature = types.void(array, types.int64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        view = make_array(sig.args[0])(context, builder, args[0])
        stride = cgutils.unpack_tuple(builder, view.strides)[0]
        byte = ir.IntType(8)
        base = builder.bitcast(view.data, byte.as_pointer())
        pointer = builder.gep(base, [builder.mul(args[1], stride)])
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, word(1), word(3), word(1)])
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, forceinline=True, _nrt=False)
def _rotl(x: Any, b: Any) -> Any:
    return (x << _U64(b)) | (x >> _U64(64 - b))


@njit(cache=True, forceinline=True, _nrt=False)
def _round(v0: Any, v1: Any, v2: Any, v3: Any) -> Any:
    v0 += v1
    v1 = _rotl(v1, 13) ^ v0
    v0 = _rotl(v0, 32)
    v2 += v3
    v3 = _rotl(v3, 16) ^ v2
    v0 += v3
    v3 = _rotl(v3, 21) ^ v0
    v2 += v1
    v1 = _rotl(v1, 17) ^ v2
    v2 = _rotl(v2, 32)
    return v0, v1, v2, v3


@njit(cache=True, forceinline=True, _nrt=False)
def sip_start(k0: Any, k1: Any) -> Any:
    """Return the four state words for a key of two words."""
    return (
        k0 ^ _U64(0x736F6D6570736575),
        k1 ^ _U64(0x646F72616E646F6D) ^ _U64(0xEE),
        k0 ^ _U64(0x6C7967656E657261),
        k1 ^ _U64(0x7465646279746573),
    )


@njit(cache=True, forceinline=True, _nrt=False)
def sip_word(v0: Any, v1: Any, v2: Any, v3: Any, word: Any) -> Any:
    """Absorb one 64-bit word."""
    v3 ^= word
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ word, v1, v2, v3


@njit(cache=True, forceinline=True, _nrt=False)
def tail_word(data: Array, at: int, end: int) -> Any:
    """Return the bytes at..end (fewer than 8) as a zero-extended word."""
    size = end - at
    if size >= 4:  # two loads that overlap: the bytes they share are equal
        high = _U64(load_u32(data, end - 4)) << _U64(8 * (size - 4))
        return _U64(load_u32(data, at)) | high
    word = _U64(0)
    shift = _U64(0)
    while at < end:
        word |= _U64(data[at]) << shift
        shift += _U64(8)
        at += 1
    return word


@njit(cache=True, forceinline=True, _nrt=False)
def sip_bytes(v0: Any, v1: Any, v2: Any, v3: Any, data: Array, start: int, end: int) -> Any:
    """Absorb bytes start..end of a uint8 array, zero-extended to whole words (no length)."""
    at = start
    while at + 8 <= end:
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, load_u64(data, at))
        at += 8
    if at < end:
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, tail_word(data, at, end))
    return v0, v1, v2, v3


@njit(cache=True, forceinline=True, _nrt=False)
def sip_finish(v0: Any, v1: Any, v2: Any, v3: Any) -> Any:
    """Return the two words of the hash.  (Messages are whole words; the final word is zero.)"""
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(0))
    v2 ^= _U64(0xEE)
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    first = v0 ^ v1 ^ v2 ^ v3
    v1 ^= _U64(0xDD)
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return first, v0 ^ v1 ^ v2 ^ v3


@njit(cache=True, forceinline=True, _nrt=False)
def sip_text(k0: Any, k1: Any, data: Array, start: int, end: int) -> Any:
    """Hash one text: its length, then its bytes.  Returns two words."""
    v0, v1, v2, v3 = sip_start(k0, k1)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(end - start))
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, data, start, end)
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True)
def text_hash(k0: Any, k1: Any, data: Array) -> Any:
    """`sip_text` of a whole array, for callers outside kernels."""
    return sip_text(k0, k1, data, 0, len(data))


_SLASHES = np.uint64(0x2F2F2F2F2F2F2F2F)
_LOW_BITS = np.uint64(0x0101010101010101)
_HIGH_BITS = np.uint64(0x8080808080808080)

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


@njit(cache=True, forceinline=True, _nrt=False)
def _xx_round(lane: Any, word: Any) -> Any:
    return _rotl(lane + word * _P2, 31) * _P1


@njit(cache=True, forceinline=True, _nrt=False)
def _xx_merge(digest: Any, lane: Any) -> Any:
    return (digest ^ _xx_round(_U64(0), lane)) * _P1 + _P4


@njit(cache=True, _nrt=False)
def xxh64(data: Array, start: int, end: int) -> Any:
    """XXH64 with seed 0 of bytes start..end of a uint8 array."""
    size = end - start
    at = start
    if size >= 32:
        a, b, c, d = _P1 + _P2, _P2, _U64(0), _U64(0) - _P1
        while at + 32 <= end:
            a = _xx_round(a, load_u64(data, at))
            b = _xx_round(b, load_u64(data, at + 8))
            c = _xx_round(c, load_u64(data, at + 16))
            d = _xx_round(d, load_u64(data, at + 24))
            at += 32
        digest = _rotl(a, 1) + _rotl(b, 7) + _rotl(c, 12) + _rotl(d, 18)
        digest = _xx_merge(_xx_merge(_xx_merge(_xx_merge(digest, a), b), c), d)
    else:
        digest = _P5
    digest += _U64(size)
    while at + 8 <= end:
        digest = _rotl(digest ^ _xx_round(_U64(0), load_u64(data, at)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= end:
        digest = _rotl(digest ^ (tail_word(data, at, at + 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        digest = _rotl(digest ^ (_U64(data[at]) * _P5), 11) * _P1
        at += 1
    digest = (digest ^ (digest >> _U64(33))) * _P2
    digest = (digest ^ (digest >> _U64(29))) * _P3
    return digest ^ (digest >> _U64(32))


@njit(cache=True, forceinline=True, _nrt=False)
def root_end(data: Array, start: int, end: int) -> Any:
    """Return where the root of an account ends: at the first slash, if any."""
    stop = start
    while stop + 8 <= end:  # eight bytes at a time while none of them is a slash
        zeroed = load_u64(data, stop) ^ _SLASHES
        if (zeroed - _LOW_BITS) & ~zeroed & _HIGH_BITS:
            break
        stop += 8
    while stop < end and data[stop] != 47:
        stop += 1
    return stop


@njit(cache=True, forceinline=True, _nrt=False)
def partition_of(data: Array, start: int, end: int) -> Any:
    """Return the partition of an account: XXH64 of its root."""
    return np.int64(xxh64(data, start, root_end(data, start, end)) & _MASK_BYTE)
