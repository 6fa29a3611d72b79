"""A feed by positions gives every event once, whichever replica gives the next page."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.files import totals_files
from meterd.actors.questions import stable_feed
from meterd.actors.questions.log_files import View
from meterd.core.questions import feed_cursor
from meterd.core.questions.feed_cursor import FeedCursor, is_stable, parse
from meterd.core.questions.listing import FeedPlace
from meterd.core.questions.partition_sets import partition
from meterd.core.questions.question import Question
from meterd.protocol.errors import BadRequest, RangeExpired
from meterd.protocol.fields import FEED_CURSOR_SIZE_MAX
from meterd.protocol.fields import feed_cursor as checked
from meterd.protocol.limits import I64_MIN, NODE_MAX, PARTITION_COUNT
from meterd.protocol.log_format import GROUP_COUNT
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory, finish
from tests.support.segments import EVER, registry_of

REGISTRY = registry_of(1)
ACCOUNTS = ("a", "b", "c/d", "e", "f/g/h")
assert len({partition(name) for name in ACCOUNTS}) == len(ACCOUNTS)

# An op of a partition: which of its events are stored; none: an op without rows.
op = st.tuples(st.sampled_from(ACCOUNTS), st.lists(st.booleans(), max_size=3))
phases = st.lists(st.lists(op, max_size=12), min_size=1, max_size=4)


class Held(NamedTuple):
    """An op in a log."""

    account: str
    index: int
    start: FeedPlace
    rows: list[int]  # in its file, of what is stored once it is applied
    ids: list[str]  # of these


class Replica:
    """A node's log: of each partition the same ops as everywhere, in an order of its own."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.log = LogDirectory(path)
        self.places = stable_feed.Places()
        self.missing: list[Any] = []
        self.waiting: list[Held] = []  # ops in the log that are not applied, in order of index
        # Ops whose content was lost: (index, what is stored, what is refused).
        self.lost: list[tuple[int, list[LoggedEvent], set[int]]] = []
        self.repaired: list[int] = []
        self.applied: defaultdict[str, list[str]] = defaultdict(list)  # ids
        self.indexes = np.zeros(GROUP_COUNT, np.uint64)

    def write(self, random: Any) -> None:
        """Write what is missing, partitions in any order, several ops in one record."""
        queues: dict[str, list[Any]] = {}
        for account, events in self.missing:
            queues.setdefault(account, []).append(events)
        self.missing = []
        while queues:
            at_once = random.sample(sorted(queues), random.randint(1, min(2, len(queues))))
            record: list[LoggedEvent] = []
            refused = set()
            for account in at_once:
                events = queues[account].pop(0)
                if not queues[account]:
                    del queues[account]
                if not events:
                    indexes, number = self.log.builder.indexes, partition(account)
                    indexes[number] = indexes.get(number, 0) + 1
                for event, is_stored in events:
                    if not is_stored:
                        refused.add(len(record))
                    record.append(event)
            if record and random.random() < 0.15:
                self.lose(record, refused)
            elif record:
                self.hold(record, refused)
            if random.random() < 0.3:
                self.repair(random)
            self.apply(random)
            if random.random() < 0.2:
                self.log.seal(segmented=not self.waiting and random.random() < 0.5)

    def hold(self, record: list[LoggedEvent], refused: set[int]) -> None:
        """Write a record; its rows wait."""
        number, row = self.log.builder.file_number, self.log.builder.row
        placed = self.log.write(record, set(range(len(record))))
        rows = {id(place.event): place.row for place in placed}
        for account in dict.fromkeys(event.account for event in record):
            stored = [
                event
                for at, event in enumerate(record)
                if event.account == account and at not in refused
            ]
            index = self.log.builder.indexes[partition(account)]
            own = [rows[id(event)] for event in stored]
            ids = [event.id for event in stored]
            self.waiting.append(Held(account, index, FeedPlace(number, row), own, ids))

    def lose(self, record: list[LoggedEvent], refused: set[int]) -> None:
        """Write a record whose content is damaged."""
        self.log.write(record, absent=True)
        for account in dict.fromkeys(event.account for event in record):
            own = [at for at, event in enumerate(record) if event.account == account]
            number = partition(account)
            index = self.log.builder.indexes[number] = self.log.builder.indexes.get(number, 0) + 1
            is_refused = {place for place, at in enumerate(own) if at in refused}
            self.lost.append((index, [record[at] for at in own], is_refused))

    def repair(self, random: Any) -> None:
        """Write the content of a lost op again: behind what follows it, in the log."""
        if not self.lost:
            return
        index, record, refused = self.lost.pop(random.randrange(len(self.lost)))
        self.log.builder.repairs = index
        try:
            self.hold(record, refused)
        finally:
            self.log.builder.repairs = 0
        self.repaired.append(self.log.builder.file_number)
        self.waiting[-1] = self.waiting[-1]._replace(index=index)
        self.waiting.sort(key=lambda held: held.index)

    def store(self, record: list[LoggedEvent]) -> None:
        """Write a record and apply it."""
        self.hold(record, set())
        self.apply()

    def apply(self, random: Any = None) -> None:
        """Apply ops of partitions in order, some of them not yet; of None: all that can be."""
        lost = {(record[0].account, index) for index, record, _ in self.lost}
        behind = set()
        for held in list(self.waiting):
            waits = any(held.account == name and index < held.index for name, index in lost)
            if waits or held.account in behind or (random is not None and random.random() < 0.3):
                behind.add(held.account)
                continue
            self.waiting.remove(held)
            self.log.refused[held.start.file_number] -= set(held.rows)
            self.applied[held.account] += held.ids
            self.indexes[partition(held.account)] = held.index

    @property
    def waits(self) -> FeedPlace:
        here = FeedPlace(self.log.builder.file_number, self.log.builder.row)
        return min((held.start for held in self.waiting), default=here)

    def tidy(self, random: Any) -> None:
        """Make a segment, or forget what is remembered as after a restart."""
        waiting = [number for number in self.log.waiting if number < self.waits.file_number]
        if waiting and random.random() < 0.3:
            self.log.make_segment(random.choice(waiting))
            self.log.files.refresh()
        self.apply(random)
        if random.random() < 0.2:
            self.places = stable_feed.Places()

    def page(self, question: Question) -> dict[str, Any]:
        log = stable_feed.AppliedLog(self.indexes.tobytes(), self.waits, self.repaired)
        view = self.log.view()
        steps = stable_feed.read_feed(view, question, REGISTRY, I64_MIN, self.places, log)
        page: dict[str, Any] = finish(steps)
        return page


@settings(max_examples=30)
@given(phases, st.integers(1, 4), st.sampled_from(["", *ACCOUNTS]), st.randoms())
def test_every_event_once_whoever_is_asked(
    drawn: list[Any], limit: int, account: str, random: Any
) -> None:
    with tempfile.TemporaryDirectory() as path:
        replicas = [Replica(Path(path, str(number))) for number in range(3)]
        latecomer = Replica(Path(path, "late"))
        expected: dict[str, list[str]] = {name: [] for name in ACCOUNTS}
        seen: dict[str, list[str]] = {name: [] for name in ACCOUNTS}
        cursor, count = None, 0
        for number, ops in enumerate(drawn):
            for name, flags in ops:
                events = []
                for is_stored in flags:
                    count += 1
                    event = LoggedEvent(name, f"id-{count}", 1, count, count)
                    events.append((event, is_stored))
                    if is_stored and account in ("", name):
                        expected[name].append(event.id)
                for replica in (*replicas, latecomer):
                    replica.missing.append((name, events))
            if number + 1 == len(drawn):
                replicas.append(latecomer)  # a new replica, which gets everything at once
            for replica in replicas:
                replica.write(random)
                if number + 1 == len(drawn):
                    while replica.lost:
                        replica.repair(random)
                    replica.apply()
            turns = 1_000 if number + 1 == len(drawn) else random.randint(0, 4)
            for _ in range(turns):
                replica = random.choice(replicas)
                replica.tidy(random)
                question = Question("feed", account, limit=limit, after=cursor, **EVER)
                page = replica.page(question)
                cursor = page["next"]
                assert checked(cursor) == cursor and is_stable(cursor)
                assert len(page["events"]) <= limit
                for event in page["events"]:
                    seen[event["account"]].append(event["id"])
                if not page["events"]:
                    for name in (account,) if account else ACCOUNTS:
                        assert replica.applied[name] == seen[name][: len(replica.applied[name])]
                    break
        assert seen == expected


def test_parts_of_several_nodes_and_from_now_on(tmp_path: Path) -> None:
    one, two = Replica(tmp_path / "1"), Replica(tmp_path / "2")
    sets = [tuple(p for p in range(PARTITION_COUNT) if p % 2 == odd) for odd in (0, 1)]

    def write(batch: int) -> set[str]:
        for replica, order in ((one, ACCOUNTS), (two, ACCOUNTS[::-1])):
            for name in order:
                replica.store([LoggedEvent(name, f"{name}-{batch}", 1, 1, 5)])
        return {f"{name}-{batch}" for name in ACCOUNTS}

    def read(after: str | None, *replicas: Replica) -> tuple[set[str], str]:
        found: Counter[str] = Counter()
        cursor = FeedCursor() if after in (None, "end") else parse(after)
        for replica, chosen in zip(replicas, sets, strict=True):
            asked = after if after in (None, "end") else str(cursor)
            page = replica.page(Question("feed", after=asked, partitions=chosen, **EVER))
            cursor.advance(chosen, parse(page["next"]))
            found.update(event["id"] for event in page["events"])
        assert max(found.values(), default=1) == 1
        return set(found), str(cursor)

    first = write(1)
    found, cursor = read(None, one, two)
    assert found == first
    _, end = read("end", two, one)
    second = write(2)
    assert read(cursor, two, one)[0] == second
    found, cursor = read(end, one, two)
    assert found == second
    assert read(cursor, two, one) == (set(), cursor)


def test_what_waits_is_given_when_it_is_applied_and_keeps_nothing_back(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "1")

    def read(after: str | None) -> tuple[list[str], str]:
        page = replica.page(Question("feed", after=after, **EVER))
        return [event["id"] for event in page["events"]], page["next"]

    for seals in (False, True):
        _, cursor = read("end")
        replica.hold([LoggedEvent("a", f"a-{seals}", 1, 1, 5)], set())
        waiting, replica.waiting = replica.waiting, []
        if seals:
            replica.log.seal(segmented=False)
        replica.store([LoggedEvent("b", f"b-{seals}", 1, 1, 5)])
        replica.waiting = waiting
        found, cursor = read(cursor)
        assert found == [f"b-{seals}"]
        assert read(cursor) == ([], cursor)
        replica.apply()
        assert read(cursor)[0] == [f"a-{seals}"]


def test_feeds_of_two_accounts_of_a_partition_do_not_meddle(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "1")
    for number in range(6):
        name = f"a/{number % 2}"
        replica.store([LoggedEvent(name, f"{name}-{number}", 1, 1, 5)])
    for account in ("a/1", "a/0", "a/2", "a/0"):
        page = replica.page(Question("feed", account, limit=9, **EVER))
        assert [event["account"] for event in page["events"]] == [account] * 3 * (account != "a/2")


def test_a_cursor_whose_events_have_gone_is_refused(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "1")
    for number in range(6):
        replica.store([LoggedEvent("a", f"id-{number}", 1, 1, 5)])
        if number in (1, 3):
            replica.log.seal(segmented=True)
    first = replica.page(Question("feed", limit=1, **EVER))["next"]
    third = replica.page(Question("feed", limit=3, **EVER))["next"]
    replica.log.delete([1], REGISTRY, 6)
    for remembers in (True, False):
        replica.places = replica.places if remembers else stable_feed.Places()
        with pytest.raises(RangeExpired):
            replica.page(Question("feed", after=first, **EVER))
        page = replica.page(Question("feed", after=third, **EVER))
        assert [event["id"] for event in page["events"]] == ["id-3", "id-4", "id-5"]
        page = replica.page(Question("feed", **EVER))
        assert [event["id"] for event in page["events"]] == ["id-2", "id-3", "id-4", "id-5"]


@pytest.mark.parametrize("remembers", [True, False])
def test_a_cursor_behind_which_nothing_has_gone_goes_on(tmp_path: Path, remembers: bool) -> None:
    """It stands at the end of a file that has gone."""
    replica = Replica(tmp_path / "1")
    replica.store(some("a", 1))
    after = replica.page(Question("feed", **EVER))["next"]
    replica.log.seal(segmented=True)
    replica.log.delete([1], REGISTRY, 6)
    replica.store(some("a", 2))
    replica.places = replica.places if remembers else stable_feed.Places()
    page = replica.page(Question("feed", after=after, **EVER))
    assert [event["id"] for event in page["events"]] == ["2"]


def opens_term(replica: Replica, account: str) -> None:
    """A new leader of a partition appends an op without rows, which is applied."""
    number = partition(account)
    replica.log.builder.indexes[number] = replica.log.builder.indexes.get(number, 0) + 1
    replica.indexes[number] = replica.log.builder.indexes[number]


@pytest.mark.parametrize("later", ["", "a", "b"])
@pytest.mark.parametrize("remembers", [True, False])
def test_a_new_leader_lets_no_cursor_expire(tmp_path: Path, remembers: bool, later: str) -> None:
    """Nothing with rows lies between the cursor and what is left of a partition, if anything is."""
    replica = Replica(tmp_path / "1")
    replica.store(some("a", 1))
    replica.log.seal(segmented=True)
    replica.store(some("c/d", 1))
    after = replica.page(Question("feed", **EVER))["next"]
    replica.log.seal(segmented=True)
    opens_term(replica, "a")
    opens_term(replica, "e")  # which never had an event
    replica.log.delete([1, 2], REGISTRY, 6)
    totals_files.rewrite(str(replica.log.path), replica.log.files.totals(), replica.log.making(6))
    replica.log.files.refresh()
    if later:
        replica.store(some(later, 2))
    replica.places = replica.places if remembers else stable_feed.Places()
    page = replica.page(Question("feed", after=after, **EVER))
    assert [event["id"] for event in page["events"]] == ["2"] * bool(later)


def test_where_totals_files_do_not_say_how_far_they_reach_all_may_have_gone(
    tmp_path: Path,
) -> None:
    """Files of earlier versions."""
    replica = Replica(tmp_path / "1")
    replica.store(some("a", 1))
    after = replica.page(Question("feed", **EVER))["next"]
    replica.log.seal(segmented=True)
    opens_term(replica, "a")
    replica.log.delete([1], REGISTRY, 6)
    (file,) = replica.log.files.totals()
    file._arrays.pop("reached")
    with pytest.raises(RangeExpired):
        replica.page(Question("feed", after=after, **EVER))
    assert totals_files.reached_by([file]) is None


def test_but_not_when_some_of_a_partition_that_was_not_begun_may_have(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "1")
    replica.store(some("a", 1))
    replica.store(some("b", 2))
    after = replica.page(Question("feed", limit=1, **EVER))["next"]
    replica.log.seal(segmented=True)
    replica.log.delete([1], REGISTRY, 6)
    replica.store(some("a", 3))
    with pytest.raises(RangeExpired):
        replica.page(Question("feed", after=after, **EVER))


positions = st.integers(0, (1 << 63) - 1)


@given(st.dictionaries(st.integers(0, PARTITION_COUNT - 1), positions), st.integers(0, NODE_MAX))
def test_a_cursor_says_what_was_said(drawn: dict[int, int], turn: int) -> None:
    cursor = FeedCursor(turn=turn)
    for number, position in drawn.items():
        cursor.positions[number] = position
    text = str(cursor)
    again = parse(text)
    assert (again.positions == cursor.positions).all() and again.turn == turn
    assert is_stable(text) and len(text) <= FEED_CURSOR_SIZE_MAX


def test_the_largest_cursor_finds_room() -> None:
    text = str(FeedCursor(np.full(PARTITION_COUNT, (1 << 63) - 1), NODE_MAX))
    assert checked(text) == text and len(str(FeedCursor())) < 10


@given(st.text(max_size=20) | st.text("p.0123AB_-", max_size=40).map("p.".__add__))
def test_a_damaged_cursor_is_refused_or_means_something(text: str) -> None:
    try:
        made = parse(text)
    except BadRequest:
        return
    assert (made.positions >= 0).all() and parse(str(made)).turn == made.turn


@pytest.mark.parametrize("text", ["", "p.", "p.1", "p.1.AA", "p.256.", "p.-1.", "p.1.gA", "q.1."])
def test_what_is_no_cursor(text: str) -> None:
    with pytest.raises(BadRequest):
        parse(text)
    assert feed_cursor.MARK == "p."


def pages_of(replica: Replica) -> list[list[str]]:
    """Read a feed from its beginning, in as few pages as it takes."""
    pages, cursor = [], None
    while True:
        page = replica.page(Question("feed", limit=1_000, after=cursor, **EVER))
        cursor = page["next"]
        if not page["events"]:
            return pages
        pages.append([event["id"] for event in page["events"]])


def some(account: str, name: object) -> list[LoggedEvent]:
    return [LoggedEvent(account, str(name), 1, 1, 5)]


def test_what_waited_for_a_repair_in_another_file_takes_one_page_more(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "1")
    replica.lose(some("a", "lost"), set())
    for number in range(40):
        replica.hold(some("a", number), set())
    replica.log.seal(segmented=False)
    replica.repair(Random(1))
    replica.apply()
    for number in range(40, 43):
        replica.store(some("a", number))
        replica.log.seal(segmented=number % 2 == 0)
    assert pages_of(replica) == [["lost"], [str(number) for number in range(43)]]


def test_slices_that_no_group_took_say_nothing_of_the_order(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "1")
    for number in range(40):
        replica.store(some("a", number))
    replica.log.seal(segmented=True)
    replica.log.write(some("a", "not here"), absent=True)
    replica.store(some("a", 40))
    replica.log.seal(segmented=True)
    replica.lose(some("b", "lost"), set())
    replica.repair(Random(1))
    replica.apply()
    assert pages_of(replica) == [[*(str(number) for number in range(41)), "lost"]]


def test_nor_does_a_partition_of_which_nothing_is_left(tmp_path: Path) -> None:
    """The page was the end: its events had gone unread, and nobody was told."""
    replica = Replica(tmp_path / "log")
    replica.store(some("a", 1))
    after = replica.page(Question("feed", **EVER))["next"]
    replica.store(some("a", 2))
    replica.log.seal(segmented=True)
    replica.store(some("b", 3))
    replica.log.delete([1], REGISTRY, 6)
    replica.places = stable_feed.Places()
    with pytest.raises(RangeExpired):
        replica.page(Question("feed", after=after, **EVER))


def test_nor_do_they_hide_that_events_have_gone(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "1")
    for number in range(4):
        if number == 2:
            replica.log.write(some("a", "not here"), absent=True)
        replica.store(some("a", number))
        if number % 2:
            replica.log.seal(segmented=True)
    first = replica.page(Question("feed", limit=1, **EVER))["next"]
    replica.log.delete([1], REGISTRY, 6)
    replica.places = stable_feed.Places()
    with pytest.raises(RangeExpired):
        replica.page(Question("feed", after=first, **EVER))


def test_a_question_from_before_a_repair_does_not_step_over_it(tmp_path: Path) -> None:
    """A segment is made between the question and its answer, of a file in which rows waited."""
    replica = Replica(tmp_path / "1")
    replica.store(some("a", "first"))
    replica.lose(some("a", "lost"), set())
    replica.hold(some("a", "behind"), set())
    replica.log.seal(segmented=False)
    log = stable_feed.AppliedLog(replica.indexes.tobytes(), replica.waits, [])
    end = (replica.log.builder.file_number, len(replica.log.builder.data))
    refused = replica.log.refused_of_waiting()
    replica.repair(Random(1))
    replica.apply()
    replica.log.make_segment(1)
    replica.log.files.segmented(1)
    view = View(replica.log.files, end, refused, replica.log.erasures)
    question = Question("feed", limit=9, **EVER)
    steps = stable_feed.read_feed(view, question, REGISTRY, I64_MIN, replica.places, log)
    page = finish(steps)
    found = [event["id"] for event in page["events"]]
    while page["events"]:
        page = replica.page(Question("feed", limit=9, after=page["next"], **EVER))
        found += [event["id"] for event in page["events"]]
    assert found == ["first", "lost", "behind"]
