"""Logs are compared by what they hold at last: one history for each group."""

from __future__ import annotations

from random import Random

from tests.support.cluster_logs import disagreements, read_ops
from tests.support.op_history import GROUPS, OpHistory


def test_what_was_replaced_counts_no_more(tmp_path) -> None:
    log = OpHistory(str(tmp_path), Random(3))
    for _ in range(60):
        log.block()
        if log.random.random() < 0.2:
            log.replace_some()
    log.block()
    log.close()
    found = read_ops(tmp_path)
    for group in GROUPS:
        ops = log.ops[group]
        for index, (term, digest) in found[group].items():
            if index <= len(ops):  # what was cut off last may still be there
                assert term == ops[index - 1].term
                assert digest == b"".join(
                    word.to_bytes(8, "little") for word in ops[index - 1].digest
                )


def test_two_histories_are_told() -> None:
    one = {0: {1: (1, b"a"), 2: (1, b"b")}, 5: {1: (1, b"c")}}
    longer = {0: {1: (1, b"a"), 2: (1, b"b"), 3: (2, b"d")}, 5: {1: (1, b"c")}}
    other = {0: {1: (1, b"a"), 2: (2, b"x")}, 5: {1: (1, b"c")}}
    assert disagreements({1: one, 2: longer}) == []
    assert [text.partition(":")[0] for text in disagreements({1: longer, 2: other})] == [
        "group 0, index 2"
    ]
