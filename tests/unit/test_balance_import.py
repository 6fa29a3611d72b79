"""An import with accounts of several partitions, on a node alone."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from meterd.client.partitions import partition_of
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
