"""Every input that a fuzzer found worth keeping still gives a value or a promised error."""

from pathlib import Path

import pytest

from tests.fuzz.fuzz_protocol import TARGETS, decode, mutate

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


def test_the_corpus_reaches_every_target():
    assert {path.read_bytes()[0] % len(TARGETS) for path in CORPUS} == set(range(len(TARGETS)))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_inputs_and_their_neighbours_are_values_or_errors(path):
    data = path.read_bytes()
    decode(data)
    for seed in range(8):
        decode(mutate(data, seed) or b"")
