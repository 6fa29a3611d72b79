"""Which node a question's cursor leads to."""

from __future__ import annotations

import pytest

from meterd.actors.questions.answering_where import cursor_prefix, split_cursor
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import NODE_MAX


@pytest.mark.parametrize("node", [1, NODE_MAX])
def test_a_cursor_names_the_node_that_gave_it(node: int) -> None:
    assert split_cursor(cursor_prefix(node) + "e.1.1") == (node, "e.1.1")
    assert split_cursor("e.1.1") == (0, "e.1.1")


@pytest.mark.parametrize(
    "number", ["", "-1", "1.", "x", f"{NODE_MAX + 1}", "999", "0001", "1" * 99]
)
def test_a_cursor_of_a_node_that_cannot_be_is_refused(number: str) -> None:
    """A node's number is one byte of a message: 256 ended usage."""
    with pytest.raises(BadRequest):
        split_cursor(f"{number}@e.1.1")
