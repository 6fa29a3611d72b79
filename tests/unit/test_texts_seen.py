"""The tables of texts seen last, by which rows of a log file find their account's number."""

from __future__ import annotations

import numpy as np
import pytest

from meterd.core.kernels import segment_rows as kernels
from meterd.core.kernels.segment_rows import GROUP, SEEN

COUNT = 10_000


def mixes(form: str) -> list[int]:
    texts = [np.frombuffer((form % i).encode(), np.uint8) for i in range(COUNT)]
    return [int(kernels.text_mix(text, 0, len(text))) for text in texts]


@pytest.mark.parametrize("form", ["%d", "bench-%09d", "acct_%08x", "org/00007/team/%d"])
def test_texts_that_differ_in_few_digits_lie_in_different_groups(form):
    found = mixes(form)
    assert len(set(found)) == COUNT
    groups = np.unique(np.array(found) & (SEEN - GROUP), return_counts=True)[1]
    # What thrown at random would leave over is 1 %.
    assert np.maximum(groups - GROUP, 0).sum() < COUNT // 50


def test_a_text_seen_has_its_number_and_no_other():
    seen = np.zeros(SEEN, np.int64)
    found = mixes("bench-%09d")
    for number, mix in enumerate(found):
        assert kernels.number_seen(seen, mix) == -1
        kernels.remember_text(seen, mix, number)
        assert kernels.number_seen(seen, mix) == number
    numbers = [int(kernels.number_seen(seen, mix)) for mix in found]
    assert all(number in (-1, place) for place, number in enumerate(numbers))
    assert numbers.count(-1) < COUNT // 50  # others have taken their place
