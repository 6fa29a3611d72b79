"""The log in memory against a plain list of ops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meterd.core.raft.log import Log
from meterd.protocol.raft_messages import CONFIG, Configuration, Mark, Op

FIRST = Configuration((1, 2, 3))

Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "configure", "truncate", "damage", "fill", "compact", "forget"]),
        st.integers(0, 30),
        st.integers(0, 3),
    ),
    max_size=40,
)


class Model:
    """Ops from index 1 on, for ever; what the log may no longer tell is left out when asked."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.base = self.floor = 0
        self.holes: set[int] = set()

    def configuration(self) -> Configuration:
        found = [op.body for op in self.ops if op.kind == CONFIG]
        return found[-1] if found else FIRST


def apply(log: Log, model: Model, step: Step) -> None:
    what, number, extra = step
    last = len(model.ops)
    if what in ("append", "configure"):
        term = (model.ops[-1].term if model.ops else 0) + extra
        body = Configuration((number + 1,)) if what == "configure" else number
        kind = CONFIG if what == "configure" else 1
        op = Op(last + 1, term, last * 100 + number, kind, 10, body)
        log.extend([op])
        model.ops.append(op)
    elif what == "truncate" and model.base <= number <= last:
        log.truncate(number)
        del model.ops[number:]
        model.holes = {i for i in model.holes if i <= number}
    elif what == "damage":
        log.damage(number)
        if model.base < number <= last:
            model.holes.add(number)
    elif what == "fill" and model.holes:
        index = min(model.holes)
        log.fill(model.ops[index - 1])
        model.holes.discard(index)
    elif what in ("compact", "forget") and model.base <= number <= last:
        _shorten(log, model, what, number)


def _shorten(log: Log, model: Model, what: str, number: int) -> None:
    if what == "compact":
        assert log.compact(log.mark(number))
        model.floor = number
    else:
        log.forget(number)
    model.base = number
    model.holes = {i for i in model.holes if i > number}


@given(steps)
def test_the_log_tells_what_was_written(todo: list[Step]) -> None:
    log, model = Log(Mark(0, 0, 0, FIRST)), Model()
    for step in todo:
        apply(log, model, step)
        assert (log.last, log.base.index, log.floor) == (len(model.ops), model.base, model.floor)
        assert log.ops == model.ops[model.base :]
        assert log.holes == sorted(model.holes)
        assert log.whole_to == min(model.holes, default=len(model.ops) + 1) - 1
        assert log.configuration == model.configuration()
        if model.ops:
            assert log.last_term == model.ops[-1].term
            assert log.digest_at(log.last) == model.ops[-1].digest


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(0, 12), st.integers(0, 35))
def test_the_last_op_of_a_term_is_found(rises: list[int], term: int, below: int) -> None:
    terms, now = [], 0
    for rise in rises:
        now += rise
        terms.append(now)
    ops = [Op(i, t, i, 1, 1, i) for i, t in enumerate(terms, 1)]
    log = Log(Mark(0, 0, 0, FIRST), ops)
    expected = max([i for i, t in enumerate(terms, 1) if t <= term and i <= below], default=0)
    assert log.last_of_term(term, below) == expected


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 30), st.integers(1, 99)
)
def test_a_read_is_as_long_as_it_may_be(sizes: list[int], first: int, bytes_max: int) -> None:
    ops = [Op(i, 1, i, 1, size, i) for i, size in enumerate(sizes, 1)]
    log = Log(Mark(0, 0, 0, FIRST), ops)
    if first > len(ops):
        return
    got = log.read(first, 8, bytes_max)
    assert got == tuple(ops[first - 1 : first - 1 + len(got)])
    assert 1 <= len(got) <= 8
    total = sum(op.size for op in got)
    assert len(got) == 1 or total <= bytes_max
    behind = ops[first - 1 + len(got) :]
    assert len(got) == 8 or not behind or total + behind[0].size > bytes_max
