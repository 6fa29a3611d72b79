"""Who is cut, against what the rules promise for any connections whatever."""

from hypothesis import given
from hypothesis import strategies as st

from meterd.core import eviction
from meterd.core.eviction import Connection

SIZES = st.integers(0, 1 << 24)
HELD = st.dictionaries(st.integers(0, 5_000), SIZES, max_size=60)
BUDGETS = st.integers(1, 1 << 26)
GROWTHS = st.integers(1, 1 << 32)


@given(HELD, SIZES)
def test_what_stays_is_within_the_allowance_and_nobody_is_cut_for_nothing(
    held: dict[int, int], allowed: int
) -> None:
    cut = eviction.choose(held, allowed)
    assert len(set(cut)) == len(cut)
    left = sum(held.values()) - sum(held[one] for one in cut)
    assert left <= allowed
    if cut:
        assert left + held[cut[-1]] > allowed  # the last one had to go, too


@given(HELD, SIZES)
def test_the_largest_go_first_and_a_fair_share_is_safe(held: dict[int, int], allowed: int) -> None:
    cut = set(eviction.choose(held, allowed))
    kept = set(held) - cut
    assert all(held[gone] >= held[stays] for gone in cut for stays in kept)
    assert all(held[gone] * len(held) > allowed for gone in cut)


@given(HELD, GROWTHS, BUDGETS)
def test_what_stays_fits_the_budget_at_what_a_byte_costs(
    held: dict[int, int], growth: int, budget: int
) -> None:
    total = sum(held.values())
    cost = eviction.cost_of(total, growth)
    assert 1 <= cost <= eviction.AMPLIFICATION_MAX
    cut = eviction.choose(held, eviction.allowance(total, cost, budget))
    left = total - sum(held[one] for one in cut)
    assert left * cost <= budget
    assert eviction.memory_behind(left, growth * left // total if total else 0) <= budget


@given(HELD, GROWTHS, BUDGETS)
def test_nobody_is_cut_when_their_bytes_cannot_be_the_reason(
    held: dict[int, int], growth: int, budget: int
) -> None:
    total = sum(held.values())
    if total * eviction.AMPLIFICATION_MAX <= budget:
        cost = eviction.cost_of(total, growth)
        assert eviction.choose(held, eviction.allowance(total, cost, budget)) == []


TRAFFIC = st.lists(
    st.tuples(
        st.integers(0, 1 << 23),  # bytes sent in whole messages
        st.integers(0, 1 << 23),  # bytes of the message that is on its way, in all
        st.booleans(),  # is what is whole delivered before the survey?
    ),
    max_size=12,
)


@given(TRAFFIC)
def test_a_connection_that_delivers_is_never_called_hopeless(
    traffic: list[tuple[int, int, bool]],
) -> None:
    """What is whole at one survey is delivered before the next, however much it is."""
    connection = Connection(1)
    sent = undelivered = 0
    for whole, partial, prompt in traffic:
        connection.delivered += undelivered
        undelivered = whole
        if prompt:
            connection.delivered += undelivered
            undelivered = 0
        sent += whole
        assert not connection.observe(sent + min(partial, eviction.HELD_SIZE_MAX), 0, 0, 0.0)


@given(st.integers(eviction.HELD_SIZE_MAX + eviction.HANDSHAKE_SIZE + 1, 1 << 40), st.booleans())
def test_an_endless_message_is_hopeless_at_the_second_survey(size: int, in_kernel: bool) -> None:
    connection = Connection(1)
    waiting = size if in_kernel else 0
    assert not connection.observe(size, 0, waiting, 0.0)
    assert connection.observe(size, 0, waiting, 0.0) is not in_kernel


@given(SIZES, SIZES, SIZES)
def test_only_well_formed_bytes_earn(sent: int, delivered: int, answered: int) -> None:
    connection = Connection(1, delivered=delivered, answered=answered)
    connection.observe(sent, 0, 0, eviction.READ_SECONDS)
    assert 0 <= connection.suspect <= connection.held
    if connection.delivered and connection.held <= connection.delivered + eviction.EARNED_FIRST:
        assert connection.suspect == 0
    if not connection.delivered:
        assert connection.suspect == connection.held
    connection.strikes = 1
    assert connection.suspect == connection.held


@given(st.integers(1, 1 << 30), st.lists(st.integers(0, 1 << 20), min_size=1, max_size=8))
def test_answers_are_earned_while_they_are_read(size: int, steps: list[int]) -> None:
    """A large answer needs its time; who takes none of it for a while holds it without a right."""
    connection = Connection(1, delivered=1)
    connection.answer(size, 0.0)
    now = read = last = 0.0
    for step in steps:
        now += eviction.READ_SECONDS / 2
        read = min(size, read + step)
        last = now if step and read > connection.acknowledged else last
        connection.observe(eviction.HANDSHAKE_SIZE + 1, int(read), 0, now)
        unread = max(0, size - int(read) - 1 - eviction.EARNED_FIRST)
        assert connection.suspect == (0 if now - last < eviction.READ_SECONDS else unread)


@given(SIZES, SIZES, SIZES)
def test_a_successor_starts_with_nothing_but_what_was_not_surveyed(
    before: int, after: int, received: int
) -> None:
    old = Connection(1, delivered=before)
    old.observe(before, 0, 0, 0.0)
    old.delivered += after
    new = old.successor(2)
    new.observe(received, 0, 0, 0.0)
    assert new.key == 2
    assert new.delivered == min(after, received)


@given(st.lists(SIZES, max_size=40), st.integers(0, 50))
def test_too_many_connections_lose_those_that_never_spoke(
    delivered: list[int], count_max: int
) -> None:
    connections = {name: Connection(name, delivered=size) for name, size in enumerate(delivered)}
    cut = eviction.surplus(connections, count_max)
    assert len(cut) == max(0, len(delivered) - count_max)
    silent = [name for name, size in enumerate(delivered) if not size]
    assert cut[: len(silent)] == silent[: len(cut)]
