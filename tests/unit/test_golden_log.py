"""Log files of earlier versions are read as they were, and today's are the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import log_golden

EXPECTED: dict[str, Any] = json.loads((log_golden.FOLDER / log_golden.EXPECTED).read_text())
VERSIONS = (log_golden.FOLDER.with_name("log-v1"), log_golden.FOLDER)


@pytest.mark.parametrize("folder", VERSIONS, ids=["v1", "v2"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_kept_file_is_read_as_it_was(folder: Path, name: str) -> None:
    expected = json.loads((folder / log_golden.EXPECTED).read_text())
    content = (folder / name).read_bytes()
    assert log_golden.describe(name, content) == expected[name]


def test_the_kept_files_show_every_kind_of_end() -> None:
    corrupt = {name for name, found in EXPECTED.items() if found["corrupt"]}
    torn = {name for name, found in EXPECTED.items() if found["torn"]}
    assert corrupt == {name for name in EXPECTED if name.startswith(("damaged", "missing"))}
    assert torn == {"torn.wal", "torn-without-header.wal"}
    assert len(EXPECTED["good.wal"]["records"]) == 4


def test_what_is_written_today_is_what_was_kept() -> None:
    for name, content in log_golden.files():
        assert content == (log_golden.FOLDER / name).read_bytes(), name
