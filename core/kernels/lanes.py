"""SipHash of eight messages at a time, for messages that are long enough.

A round of SipHash waits for itself, so one message takes six cycles for each word, whatever else
the processor could do meanwhile.  `absorb` goes on with eight messages side by side in vectors:
LLVM makes of them what the processor has.  Its hashes are those of `hashing.sip_bytes`.

Eight states are u64[4 * LANES]: the first words of all, the second words of all, and so on.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from meterd.core.kernels.hashing import sip_bytes

Array = Any

LANES = 8
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, LANES)
_LANE = ir.IntType(32)


def _rotated(builder: Any, value: Any, bits: int) -> Any:
    left = builder.shl(value, ir.Constant(_VECTOR, [bits] * LANES))
    right = builder.lshr(value, ir.Constant(_VECTOR, [64 - bits] * LANES))
    return builder.or_(left, right)


def _rounded(builder: Any, v0: Any, v1: Any, v2: Any, v3: Any) -> tuple[Any, Any, Any, Any]:
    """Do one round, as `hashing._round` does."""
    v0 = builder.add(v0, v1)
    v1 = builder.xor(_rotated(builder, v1, 13), v0)
    v0 = _rotated(builder, v0, 32)
    v2 = builder.add(v2, v3)
    v3 = builder.xor(_rotated(builder, v3, 16), v2)
    v0 = builder.add(v0, v3)
    v3 = builder.xor(_rotated(builder, v3, 21), v0)
    v2 = builder.add(v2, v1)
    v1 = builder.xor(_rotated(builder, v1, 17), v2)
    return v0, v1, _rotated(builder, v2, 32), v3


@intrinsic
def absorb(typing_context: Any, states: Any, data: Any, places: Any, words: Any) -> Any:
    """Absorb so many words into each of eight states, from its place (int64[8]) in data (u8) on."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = [make_array(sig.args[k])(context, builder, args[k]).data for k in range(3)]
        held, source, begins = arrays
        parts = []
        for k in range(4):
            at = builder.gep(held, [ir.Constant(_WORD, k * LANES)])
            parts.append(builder.bitcast(at, _VECTOR.as_pointer()))
        state = [cgutils.alloca_once(builder, _VECTOR) for _ in parts]
        for one, part in zip(state, parts, strict=True):
            builder.store(builder.load(part, align=8), one)
        starts = []
        for lane in range(LANES):
            begin = builder.load(builder.gep(begins, [ir.Constant(_WORD, lane)]))
            starts.append(builder.bitcast(builder.gep(source, [begin]), _WORD.as_pointer()))
        with cgutils.for_range(builder, args[3]) as loop:
            word = ir.Constant(_VECTOR, ir.Undefined)
            for lane, start in enumerate(starts):
                one = builder.load(builder.gep(start, [loop.index]), align=1)
                word = builder.insert_element(word, one, ir.Constant(_LANE, lane))
            v0, v1, v2, v3 = (builder.load(one) for one in state)
            v0, v1, v2, v3 = _rounded(builder, v0, v1, v2, builder.xor(v3, word))
            for one, value in zip(state, (builder.xor(v0, word), v1, v2, v3), strict=True):
                builder.store(value, one)
        for one, part in zip(state, parts, strict=True):
            builder.store(builder.load(one), part, align=8)
        return context.get_dummy_value()

    return types.void(states, data, places, types.int64), generate


@njit(cache=True, _nrt=False)
def absorb_bytes(states: Array, data: Array, places: Array, sizes: Array) -> None:
    """Absorb so many bytes (int64[8]) into each of eight states, zero-extended to whole words."""
    words = sizes[0] >> 3
    for lane in range(1, LANES):
        words = min(words, sizes[lane] >> 3)
    absorb(states, data, places, words)
    for lane in range(LANES):
        v0, v1, v2, v3 = state_of(states, lane)
        at = places[lane] + 8 * words
        end = places[lane] + sizes[lane]
        v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, data, at, end)
        put_state(states, lane, v0, v1, v2, v3)


@njit(cache=True, forceinline=True, _nrt=False)
def state_of(states: Array, lane: int) -> Any:
    """Return the four words of one state."""
    return (
        states[lane],
        states[LANES + lane],
        states[2 * LANES + lane],
        states[3 * LANES + lane],
    )


@njit(cache=True, forceinline=True, _nrt=False)
def put_state(states: Array, lane: int, v0: Any, v1: Any, v2: Any, v3: Any) -> None:
    """Set the four words of one state."""
    states[lane] = v0
    states[LANES + lane] = v1
    states[2 * LANES + lane] = v2
    states[3 * LANES + lane] = v3
