"""An import with accounts of several partitions, on a node alone."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from meterd.client.partitions import partition_of
from meterd.core.state.balance_rows import COUNT_MAX, SUM_MAX
from meterd.core.state.balances import BALANCES_MAX
from tests.support.one_process import OneProcessNode, Refusal, apart

AT = 1_700_000_000_000_000_000
NAMES = sorted(("acme", "globex", "initech", "hooli"), key=partition_of)


def balance(account: str, count: int) -> dict[str, Any]:
    return {"account": account, "metric": "calls", "at": AT, "count": count}


def test_any_partition_may_refuse_it(tmp_path: Path) -> None:
    """Only the last one was listened to."""

    def imports() -> list[str]:
        node = OneProcessNode(tmp_path, Random(1)).start()
        node.ask("metric_put", code="calls", aggregation="count")
        found = []
        for number, names in enumerate((NAMES[:1], NAMES[-1:], NAMES)):
            balances = [balance(name, 100 + number) for name in names]
            for _ in range(2):
                try:
                    name = f"import {min(number, 1)}"
                    found.append(node.ask("balance_import", id=name, balances=balances)["outcome"])
                except Refusal as refusal:
                    found.append(refusal.args[0])
        return found

    assert len({partition_of(name) for name in NAMES}) == len(NAMES)
    taken = ["imported", "unchanged"]
    assert apart(imports) == [*taken, *taken, "import_conflict", "import_conflict"]


def test_no_balances_add_up_to_more_than_a_cell_holds(tmp_path: Path) -> None:
    """Two of 2^126 were taken, and their sum was negative; so was the count of two of 2^63 - 1."""

    def largest() -> Any:
        node = OneProcessNode(tmp_path, Random(1)).start()
        node.ask("metric_put", code="calls", aggregation="sum", decimals=0)
        most = balance("acme", COUNT_MAX) | {"sum": str(SUM_MAX)}
        least = balance("acme", COUNT_MAX) | {"at": AT + 1, "sum": str(-SUM_MAX - 1)}
        for number, rows in enumerate(([most, most], [least])):
            node.ask("balance_import", id=f"import {number}", balances=rows)
        for beyond in ({"count": COUNT_MAX + 1}, {"sum": str(SUM_MAX + 1)}):
            with pytest.raises(Refusal, match="bad_request"):
                node.ask("balance_import", id="beyond", balances=[most | beyond])
        return node.ask("usage", account="acme", metric="calls", start=AT, end=AT + 2)

    assert BALANCES_MAX * COUNT_MAX <= 1 << 62
    assert BALANCES_MAX * (SUM_MAX + 1) <= 1 << 126
    found = apart(largest)
    assert (found["value"], found["count"]) == (str(SUM_MAX - 1), 3 * COUNT_MAX)
