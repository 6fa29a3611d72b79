"""Frames in a ring: what a reader holds stays as it was sent, and room comes back."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meterd.actors.frames.rings import LINE, Reader, Writer, make_ring

SIZE = 64 * LINE
READERS = ("first", "second")


class Sides:
    """A writer, its readers, and what is on its way to each of them."""

    def __init__(self) -> None:
        ring = make_ring(len(READERS), SIZE)
        self.writer = Writer(ring, READERS)
        self.readers = [Reader(ring, number) for number in range(len(READERS))]
        self.on_way: list[deque[tuple[tuple[int, int], bytes]]] = [deque(), deque()]
        self.held: list[list[tuple[memoryview, bytes]]] = [[], []]
        self.count = 0

    def send(self, size: int, targets: list[int], hurried: bool = False) -> bool:
        self.count += 1
        frame = (self.count.to_bytes(8, "little") * (size // 8 + 1))[:size]
        places = []
        for number in targets:
            place = self.writer.put(READERS[number], frame)
            if place is not None:
                self.on_way[number].append((place, frame))
            places.append(place)
            if hurried:  # a reader may be done before the next is sent it, and more with it
                self.take(number)
                self.held[number].clear()
                self.send(8, [self.count % 2])
        if len(targets) == 2 and None not in places and not hurried:
            assert places[0] == places[1], "it was copied twice"
        return None not in places

    def take(self, number: int) -> None:
        if self.on_way[number]:
            place, frame = self.on_way[number].popleft()
            self.held[number].append((self.readers[number].take(*place), frame))

    def drop(self, number: int, which: int) -> None:
        if self.held[number]:
            del self.held[number][which % len(self.held[number])]

    def check(self) -> None:
        for held in self.held:
            for view, frame in held:
                assert view == frame
                assert view.readonly

    def let_all_go(self) -> None:
        for number in range(2):
            while self.on_way[number]:
                self.take(number)
            self.held[number].clear()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, SIZE // 5), st.sampled_from([[0], [1], [0, 1]])),
        st.tuples(st.just("hurry"), st.integers(1, SIZE // 5), st.just([0, 1])),
        st.tuples(st.just("take"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 1), st.integers(0, 20)),
    ),
    max_size=80,
)


@given(steps)
def test_what_is_held_stays_and_what_is_let_go_is_room(steps: list[Any]) -> None:
    sides = Sides()
    for what, a, b in steps:
        if what in ("send", "hurry"):
            sides.send(a, b, what == "hurry")
        elif what == "take":
            sides.take(a)
        else:
            sides.drop(a, b)
        sides.check()
    sides.let_all_go()
    for _ in range(10):  # now there is room for what fills half of it, and again
        assert sides.send(SIZE // 5, [0, 1])
        assert sides.send(SIZE // 5, [1])
        sides.let_all_go()


def test_without_room_a_frame_goes_by_the_socket() -> None:
    sides = Sides()
    sent = 0
    while sides.send(SIZE // 8, [0]):
        sent += 1
    assert sent == 8
    sides.take(0)
    assert not sides.send(SIZE // 8, [0]), "a view of it is still there"
    sides.held[0].clear()
    assert sides.send(SIZE // 8, [0])
    sides.take(0)
    sides.check()


def test_what_is_too_large_goes_by_the_socket() -> None:
    ring = make_ring(1)
    writer = Writer(ring, ("only",))
    assert writer.put("only", bytes(len(ring.memory) // 4)) is not None
    assert writer.put("only", bytes(len(ring.memory) // 4 + 1)) is None


def test_a_new_writer_is_not_misled_by_what_readers_of_the_last_let_go() -> None:
    ring = make_ring(1, SIZE)
    writer, reader = Writer(ring, ("only",)), Reader(ring, 0)
    for _ in range(5):
        place = writer.put("only", bytes(SIZE // 4))
        assert place is not None
        reader.take(*place)  # and lets it go at once
    anew = Writer(ring, ("only",))
    places = [anew.put("only", bytes(SIZE // 8)) for _ in range(9)]
    assert None not in places[:8]
    assert places[8] is None
    assert min(place[0] for place in places[:8] if place) >= int(ring.words.max())
