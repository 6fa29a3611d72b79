"""The session decides alone: simulated time, simulated loss, no network."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.client import session as session_module
from meterd.client.batches import EventSource, ingest_calls, ingest_result
from meterd.client.events import Event
from meterd.client.results import IngestUndecided
from meterd.client.session import OF_NODE, Call, Job, Session, Unsendable
from meterd.protocol.body import pack
from meterd.protocol.envelope import AnswerHeader, decode_request, encode_answer
from meterd.protocol.errors import (
    DeadlineExceeded,
    MeterdError,
    MetricConflict,
    NotLeader,
    Overloaded,
    Refused,
    Restarting,
    Starting,
    Unreachable,
    error_body,
)
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.messages import JOB_STARTERS
from meterd.protocol.result import IngestResult, decode_result, encode_result
from tests.support.fake_node import REFUSALS, ModelNode

HERE, THERE = "here:7001", "there:7001"
REQUEST_EVENTS = 3  # keeps simulated jobs of a few events in several requests


def session_of(*seeds: str, timeout_s: float = 30.0) -> Session:
    return Session(seeds or (HERE,), timeout_s, lambda: 0.0)


def job_of(kind: str = "hello", account: str | None = None) -> Job:
    return Job([Call(kind, pack({}), account)])


def sent(session: Session) -> list[tuple[str, list[bytes], str]]:
    """Give what is sent now, without the questions for the map."""
    sends = [
        (address, list(frames), decode_request(frames)[0].kind)
        for address, frames in session.take_sends()
    ]
    return [send for send in sends if send[2] != "map"]


def answer_to(frames: list[bytes], error: Exception | None = None, version: int = 1) -> list[bytes]:
    header, _ = decode_request(frames)
    status, body = ("ok", {"from": header.id}) if error is None else ("error", error_body(error))
    return encode_answer(AnswerHeader(header.id, header.kind, status, version), pack(body))


def result_to(frames: list[bytes], result: IngestResult) -> list[bytes]:
    header, _ = decode_request(frames)
    return encode_answer(AnswerHeader(header.id, header.kind, "ok", 1), encode_result(result))


def map_answer(frames: list[bytes], version: int, nodes: dict, leaders: list[int]) -> list[bytes]:
    header, _ = decode_request(frames)
    body = {"version": version, "partitions": 256, "nodes": nodes, "leaders": leaders}
    return encode_answer(AnswerHeader(header.id, "map", "ok", version), pack(body))


def test_an_answer_ends_the_call() -> None:
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(address, frames, kind)] = sent(session)
    assert (address, kind) == (HERE, "hello")
    session.on_answer(0.1, HERE, answer_to(frames))
    assert job.done and session.take_finished() == [job]
    assert job.calls[0].result() == {"from": decode_request(frames)[0].id}


def test_a_silent_attempt_is_sent_again_with_doubled_patience_and_the_same_body() -> None:
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(_, first, _)] = sent(session)
    wakes = []
    for _ in range(4):
        wake = session.next_wake()
        wakes.append(wake)
        session.on_tick(wake)
        [(_, again, _)] = sent(session)
        assert again[1] == first[1] and again[0] != first[0]
    assert wakes == [1.0, 3.0, 7.0, 15.0]


def test_a_node_that_answers_others_is_given_more_time() -> None:
    """Under load the answer waits in a queue: sending the batch again would lengthen the queue."""
    session, slow = session_of(), job_of()
    session.start(0.0, slow)
    assert len(sent(session)) == 1
    asked_again_at = None
    for tenth in range(1, 100):
        now = tenth / 10
        session.on_tick(now)
        if any(kind == "hello" for _, _, kind in sent(session)):
            asked_again_at = now
            break
        session.start(now, job_of("health"))
        for _, other, _ in sent(session):
            session.on_answer(now, HERE, answer_to(other))
    assert asked_again_at == session_module.STRETCH_MAX * session_module.PATIENCE_S
    assert slow.calls[0].attempts_count == 2


def test_the_answer_to_an_older_attempt_counts() -> None:
    """A node that was paused answers everything it finds, the oldest first."""
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(_, first, _)] = sent(session)
    session.on_tick(1.0)
    [(_, second, _)] = sent(session)
    session.on_answer(1.1, HERE, answer_to(first))
    assert job.done
    session.on_answer(1.2, HERE, answer_to(second))
    assert session.stray_answers == 1


def test_what_an_older_attempt_calls_rejected_the_newer_one_may_store() -> None:
    session = session_of()
    job = Job([Call("ingest", pack({}))])
    session.start(0.0, job)
    [(_, first, _)] = sent(session)
    session.on_tick(1.0)
    [(_, second, _)] = sent(session)
    rejected = IngestResult(2, stored=1, rejected=1, items=[(1, "rejected", "too_far_ahead")])
    session.on_answer(1.1, HERE, result_to(first, rejected))
    assert not job.done
    session.on_answer(1.2, HERE, result_to(second, IngestResult(2, stored=2)))
    assert job.done
    assert decode_result(job.calls[0].body_of_answer()).stored == 2


def test_silence_until_the_deadline_is_unreachable() -> None:
    session, job = session_of(timeout_s=5.0), job_of()
    session.start(0.0, job)
    while not job.done:
        session.on_tick(session.next_wake())
    assert session.next_wake() is None
    with pytest.raises(Unreachable, match="no answer to hello within 5 s from here:7001"):
        job.calls[0].result()


def test_overload_is_retried_when_the_node_says_and_ends_at_the_deadline() -> None:
    session, job = session_of(timeout_s=1.0), job_of()
    session.start(0.0, job)
    now = 0.0
    while not job.done:
        for _, frames, _ in sent(session):
            session.on_answer(now, HERE, answer_to(frames, Overloaded(retry_after_ms=300)))
            if not job.done:
                assert session.next_wake() == pytest.approx(min(now + 0.3, 1.0))
        now = session.next_wake()
        session.on_tick(now)
    assert now == 1.0 and job.calls[0].attempts_count == 4
    with pytest.raises(DeadlineExceeded) as caught:
        job.calls[0].result()
    assert isinstance(caught.value.__cause__, Overloaded)


def test_an_error_that_retrying_cannot_mend_ends_the_call() -> None:
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames, MetricConflict("another definition")))
    with pytest.raises(MetricConflict, match="another definition"):
        job.calls[0].result()


def test_an_older_attempts_overload_does_not_disturb_the_newer_one() -> None:
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(_, first, _)] = sent(session)
    session.on_tick(1.0)
    [(_, second, _)] = sent(session)
    session.on_answer(1.5, HERE, answer_to(first, Overloaded(retry_after_ms=10)))
    assert not job.calls[0].resting and job.calls[0].wake == 3.0
    session.on_answer(1.6, HERE, answer_to(second))
    assert job.done


def test_a_silent_node_is_asked_last() -> None:
    session, job, next_job = session_of(HERE, THERE), job_of(), job_of()
    session.start(0.0, job)
    session.on_tick(1.0)
    assert [address for address, _, _ in sent(session)] == [HERE, THERE]
    session.start(1.1, next_job)
    [(address, frames, _)] = sent(session)
    assert address == THERE
    session.on_answer(1.2, THERE, answer_to(frames))
    session.start(60.0, job_of())
    assert sent(session)[-1][0] == THERE  # it answered last


@pytest.mark.parametrize(
    "error", [NotLeader(), Starting(), *(Refused(c, "", "later", "") for c in OF_NODE)]
)
def test_elsewhere_means_another_node(error: MeterdError) -> None:
    session, job = session_of(HERE, THERE), job_of()
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames, error))
    session.on_tick(session.next_wake())
    assert [address for address, _, _ in sent(session)] == [THERE]


def test_restarting_backs_off_and_tries_again() -> None:
    session, job = session_of(), job_of()
    session.start(0.0, job)
    now, rests = 0.0, []
    for _ in range(5):
        [(_, frames, _)] = sent(session)
        session.on_answer(now, HERE, answer_to(frames, Restarting()))
        call = job.calls[0]
        rests.append(round(call.wake - now, 3))
        now = call.wake
        session.on_tick(now)
    assert rests == [0.02, 0.04, 0.08, 0.16, 0.32]


def test_events_go_to_the_leader_once_the_map_is_known() -> None:
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames, version=4))
    [(address, frames)] = session.take_sends()
    assert (address, decode_request(frames)[0].kind) == (HERE, "map")
    leaders = [1] * PARTITION_COUNT
    nodes = {"1": HERE, "2": THERE}
    session.on_answer(0.2, HERE, map_answer(frames, 4, nodes, leaders))
    session.start(0.3, job_of(account="acme/eu"))
    assert sent(session)[0][0] == HERE
    session.map.leaders[:] = [THERE] * PARTITION_COUNT
    session.start(0.4, job_of(account="acme/eu"))
    [(address, frames, _)] = sent(session)
    assert address == THERE and decode_request(frames)[0].map_version == 4


def test_what_is_about_a_node_is_asked_of_no_other() -> None:
    session = session_of(HERE)
    session.start(0.0, job_of())
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames, version=4))
    [(_, frames)] = session.take_sends()
    nodes = {"1": HERE, "2": THERE}
    session.on_answer(0.2, HERE, map_answer(list(frames), 4, nodes, [1] * PARTITION_COUNT))
    asked = {}
    for kind in ("health", "disk_status", "usage"):
        session.start(0.3, job_of(kind))
        sent(session)
    while (wake := session.next_wake()) is not None and wake < 20.0:
        session.on_tick(wake)
        for address, _, kind in sent(session):
            asked.setdefault(kind, set()).add(address)
    assert asked == {"health": {HERE}, "disk_status": {HERE}, "usage": {HERE, THERE}}


@pytest.mark.parametrize("kind", JOB_STARTERS)
def test_what_starts_a_job_is_sent_once_however_long_the_node_is_silent(kind: str) -> None:
    session, job = session_of(HERE, THERE, timeout_s=5.0), job_of(kind)
    session.start(0.0, job)
    sends = sent(session)
    while not job.done:
        wake = session.next_wake()
        assert wake is not None
        session.on_lost(wake, HERE)
        session.on_tick(wake)
        sends += sent(session)
    assert [(address, what) for address, _, what in sends] == [(HERE, kind)]
    assert isinstance(job.calls[0].error, Unreachable)


@pytest.mark.parametrize("kind", JOB_STARTERS)
def test_what_starts_a_job_is_not_sent_again_when_it_may_go_on(kind: str) -> None:
    session, job = session_of(), job_of(kind)
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames, Restarting(retry_after_ms=5)))
    assert job.done and isinstance(job.calls[0].error, Restarting)


def test_what_starts_a_job_is_sent_again_to_who_had_no_room_for_it() -> None:
    session, job = session_of(), job_of("disk_status")
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames, Overloaded(retry_after_ms=5)))
    session.on_tick(session.next_wake())
    assert [kind for _, _, kind in sent(session)] == ["disk_status"]


def test_the_map_of_a_single_node_changes_no_address() -> None:
    """A node behind address translation calls itself by a name that the client cannot reach."""
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames))
    [(_, frames)] = session.take_sends()
    session.on_answer(0.2, HERE, map_answer(frames, 1, {"1": "10.0.0.1:7001"}, [1] * 256))
    session.start(0.3, job_of(account="acme"))
    assert session.addresses == [HERE] and sent(session)[0][0] == HERE


def test_a_map_that_makes_no_sense_is_dropped() -> None:
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames))
    [(_, frames)] = session.take_sends()
    session.on_answer(0.2, HERE, map_answer(frames, 1, {"1": HERE}, [1, 1]))
    assert session.map is None and session.malformed_answers == 1


def test_the_window_is_bounded_and_jobs_take_turns() -> None:
    session = session_of()
    long = Job(Call("hello", pack({})) for _ in range(100))
    short = job_of()
    session.start(0.0, long)
    session.start(0.0, short)
    while session.next_wake() == 0:
        session.on_tick(0.0)
    assert len(sent(session)) == session_module.INFLIGHT_COUNT_MAX
    assert len(short.calls) == 1


def test_a_failed_call_ends_its_job_and_no_other() -> None:
    session = session_of()
    long, other = Job(Call("hello", pack({})) for _ in range(100)), job_of()
    session.start(0.0, long)
    session.start(0.0, other)
    (_, first, _), (_, second, _) = sent(session)
    session.on_answer(0.1, HERE, answer_to(first, MetricConflict()))
    assert long.done and not other.done and len(long.calls) == 1
    session.on_answer(0.1, HERE, answer_to(second))
    assert other.done and session.next_wake() is not None  # the map's


def test_what_making_a_call_raises_stays_with_its_job() -> None:
    def broken():
        yield Call("hello", pack({}))
        raise TypeError("a float")

    session, job = session_of(), Job(broken())
    session.start(0.0, job)
    session.on_tick(0.0)
    [(_, frames, _)] = sent(session)
    session.on_answer(0.1, HERE, answer_to(frames))
    assert job.done and isinstance(job.error, TypeError)


@pytest.mark.parametrize("error", [None, MetricConflict()])
def test_what_cannot_be_encoded_does_not_hide_what_is_undecided(error: MeterdError | None) -> None:
    source = EventSource([Event("acme", "calls", number, 7, f"id-{number}") for number in (1, 2)])

    def calls() -> Iterator[Call]:
        yield Call("ingest", pack({}), None, [0])
        raise Unsendable("the second one is too large")

    session, job = session_of(timeout_s=0.5), Job(calls())
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.on_tick(0.1)  # the second one's turn
    if error is not None:
        session.on_answer(0.2, HERE, answer_to(frames, error))
    session.on_tick(1.0)
    assert job.done
    with pytest.raises(MeterdError, match="the second one is too large") as caught:
        ingest_result(source, job)
    if error is not None:  # the first one is refused, so nothing is stored
        assert isinstance(caught.value, Unsendable)
    else:
        assert isinstance(caught.value, IngestUndecided)
        assert caught.value.undecided == source.events
        assert isinstance(caught.value.__cause__, Unsendable)


def test_what_a_minority_leaves_undecided_is_said_in_words() -> None:
    source = EventSource([Event("acme", "calls", 1, 7, "id-1")])
    session, job = session_of(timeout_s=0.5), Job(ingest_calls(source, "sync", None))
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    unknown = IngestResult(1, unknown=1, items=[(0, "unknown", "")])
    session.on_answer(0.1, HERE, result_to(frames, unknown))
    session.on_tick(1.0)
    with pytest.raises(IngestUndecided) as caught:
        ingest_result(source, job)
    why = "nodes answer, but not that a majority has stored them"
    assert caught.value.message == f"1 of 1 events are undecided: {why}"


def test_an_abandoned_job_leaves_nothing_behind() -> None:
    session, job = session_of(), job_of()
    session.start(0.0, job)
    [(_, frames, _)] = sent(session)
    session.abandon(job)
    assert session.next_wake() is None
    session.on_answer(0.1, HERE, answer_to(frames))
    assert session.stray_answers == 1 and session.take_finished() == []


class Network:
    """Loses, delays, reorders and doubles messages between a session and a model node."""

    def __init__(self, session: Session, choose: random.Random) -> None:
        self.session = session
        self.node = ModelNode()
        self.choose = choose
        self.requests: list[list[bytes]] = []
        self.answers: list[list[bytes]] = []
        self.now = 0.0

    def take_sends(self) -> None:
        self.requests += [list(frames) for _, frames in self.session.take_sends()]

    def step(self) -> None:
        """Do one thing that can happen to a network."""
        self.take_sends()
        deed = self.choose.randrange(8)
        queue = self.requests if deed % 2 else self.answers
        if deed >= 6 or not queue:
            self.pass_time(self.choose.uniform(0.0, 2.0))
            return
        message = queue[self.choose.randrange(len(queue))]
        if deed < 4:
            queue.remove(message)
        if deed in (2, 3):
            return  # lost; 4 and 5 deliver it and keep it, to come again
        if queue is self.requests:
            self.reach_node(message)
        else:
            self.session.on_answer(self.now, HERE, message)

    def reach_node(self, frames: list[bytes]) -> None:
        header, _ = decode_request(frames)
        if self.choose.randrange(4) == 0:
            refusal = REFUSALS[self.choose.choice(sorted(REFUSALS))]
            self.answers.append(self.node.refuse(header, refusal))
        else:
            self.answers.append(self.node.answer(frames))

    def heal(self) -> None:
        """Deliver everything at once."""
        self.take_sends()
        self.answers += [self.node.answer(frames) for frames in self.requests]
        for frames in self.answers:
            self.session.on_answer(self.now, HERE, frames)
        self.requests, self.answers = [], []

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        wake = self.session.next_wake()
        if wake is not None and wake <= self.now:
            self.session.on_tick(self.now)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    choose=st.randoms(use_true_random=False),
    steps=st.integers(0, 120),
    events_count=st.integers(1, 12),
    heals=st.booleans(),
)
def test_every_event_is_stored_once_whatever_the_network_does(
    choose: random.Random, steps: int, events_count: int, heals: bool
) -> None:
    events = [Event("acme", "api_calls", number, 7, f"id-{number}") for number in range(1, 13)]
    source = EventSource(events[:events_count])
    session = Session((HERE,), 10.0, choose.random)
    network = Network(session, choose)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meterd.client.batches.REQUEST_EVENTS_COUNT", REQUEST_EVENTS)
        job = Job(ingest_calls(source, "sync", None))
        session.start(0.0, job)
        for _ in range(steps):
            network.step()
        for _ in range(200):
            if heals:
                network.heal()
            network.pass_time(0.5)
    assert job.done, "a job must end at its deadline at the latest"
    stored = {identity[1].decode() for identity in network.node.events}
    try:
        result = ingest_result(source, job)
    except IngestUndecided as error:
        result = error.result
        undecided = {event.id for event in error.undecided}
        assert undecided == {
            events[item.index].id for item in result.items if item.status == "unknown"
        }
    outcomes = ["stored"] * events_count
    for item in result.items:
        outcomes[item.index] = item.status
    assert result.received == events_count
    for name in ("stored", "duplicate", "unknown"):
        assert outcomes.count(name) == getattr(result, name)
    for event, outcome in zip(source.events, outcomes, strict=True):
        assert outcome in ("stored", "duplicate", "unknown")
        if outcome != "unknown":
            assert event.id in stored
    assert stored <= {event.id for event in source.events}
    assert all(call.body == b"" for call in job.calls), "a finished call keeps no body"
    assert not session._pending or session._map_call is not None


def test_what_a_lost_node_was_asked_goes_elsewhere() -> None:
    session = session_of(HERE, THERE)
    job = job_of()
    session.start(0.0, job)
    assert [send[0] for send in sent(session)] == [HERE]
    session.on_lost(0.1, HERE)
    session.on_lost(0.1, HERE)  # connecting anew has failed
    wake = session.next_wake()
    assert wake is not None
    assert 0.1 < wake < 0.1 + session_module.PATIENCE_S / 2
    session.on_tick(wake)
    ((address, frames, _),) = sent(session)
    assert address == THERE
    session.on_answer(0.3, THERE, answer_to(frames))
    assert job.done
    # It is asked last until it answers.
    later = job_of()
    session.start(1.0, later)
    assert [send[0] for send in sent(session)] == [THERE]


def test_where_there_is_no_elsewhere_a_lost_node_is_waited_for() -> None:
    session = session_of(HERE)
    session.start(0.0, job_of())
    assert len(sent(session)) == 1
    wake = session.next_wake()
    session.on_lost(0.1, HERE)
    assert session.next_wake() == wake


def test_who_loses_all_nodes_does_not_ask_without_end() -> None:
    session = session_of(HERE, THERE, timeout_s=30.0)
    job = job_of()
    session.start(0.0, job)
    now, attempts = 0.0, 0
    while not job.done:
        for address, *_ in sent(session):
            attempts += 1
            session.on_lost(now, address)
        wake = session.next_wake()
        assert wake is not None
        now = max(now, wake)
        session.on_tick(now)
    assert attempts < 60
    with pytest.raises(Unreachable):
        job.calls[0].result()


def test_what_is_about_a_node_itself_waits_for_it() -> None:
    session = session_of(HERE, THERE)
    session.start(0.0, job_of("health"))
    assert [send[0] for send in sent(session)] == [HERE]
    wake = session.next_wake()
    session.on_lost(0.1, HERE)
    assert session.next_wake() == wake


def test_a_call_may_be_tried_any_number_of_times() -> None:
    """Overload ends an attempt soon, so that a patient client makes thousands of them."""
    session, job = session_of(timeout_s=3_600.0), job_of()
    session.start(0.0, job)
    now = 0.0
    for attempt in range(1_200):
        [(_, frames, _)] = sent(session)
        error = Restarting() if attempt == 1_100 else Overloaded(retry_after_ms=1)
        session.on_answer(now, HERE, answer_to(frames, error))
        now = job.calls[0].wake
        session.on_tick(now)
    assert not job.done and job.calls[0].attempts_count > 1_200
