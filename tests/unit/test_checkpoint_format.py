"""The container of checkpoints and runs: what goes in comes out, or it is damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.protocol import checkpoint_format
from meterd.protocol.log_format import Damaged

DTYPES = ["<i8", "<u8", "|u1", "<u4"]
arrays = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.builds(
        lambda dtype, rows, width: np.arange(rows * width).astype(dtype).reshape(rows, width),
        st.sampled_from(DTYPES),
        st.integers(0, 30),
        st.integers(1, 4),
    ),
)
states = st.dictionaries(
    st.text(max_size=5), st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=9) | st.none()
)


def encoded(state: dict[str, Any], content: dict[str, Any]) -> bytes:
    return b"".join(bytes(part) for part in checkpoint_format.encode(state, content))


@given(states, arrays)
def test_what_goes_in_comes_out(state, content):
    raw = encoded(state, content)
    assert len(raw) % checkpoint_format.ALIGNMENT == 0
    found, sections = checkpoint_format.decode(raw)
    assert found == checkpoint_format.read_state(raw) == state
    assert sections.keys() == content.keys()
    for name, array in content.items():
        assert sections[name].dtype == array.dtype
        assert np.array_equal(sections[name], array)


@settings(max_examples=40)
@given(states, arrays, st.data())
def test_bytes_that_changed_are_damage_or_carry_nothing(state, content, data):
    raw = encoded(state, content)
    changed = bytearray(raw)
    at = data.draw(st.integers(0, len(raw) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found, sections = checkpoint_format.decode(bytes(changed))
    except Damaged:
        return
    assert raw[at] == 0  # padding
    assert found == state
    assert all(np.array_equal(sections[name], content[name]) for name in content)


@settings(max_examples=40)
@given(states, arrays, st.data())
def test_a_piece_is_damaged_unless_only_padding_is_missing(state, content, data):
    raw = encoded(state, content)
    size = data.draw(st.integers(0, len(raw) - 1))
    try:
        found, sections = checkpoint_format.decode(raw[:size])
    except Damaged:
        return
    assert not any(raw[size:])
    assert found == state
    assert all(np.array_equal(sections[name], content[name]) for name in content)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_damage(raw):
    with pytest.raises(Damaged):
        checkpoint_format.decode(raw)


def test_a_later_version_is_named():
    raw = bytearray(encoded({}, {}))
    raw[8] = checkpoint_format.VERSION + 1
    raw[20:24] = checkpoint_format.crc32c(bytes(raw[:20])).to_bytes(4, "little")
    with pytest.raises(Damaged, match=f"version {checkpoint_format.VERSION + 1}"):
        checkpoint_format.decode(bytes(raw))
