"""Decides what a client sends, where to, when again, and when it gives up.

A session is sans-I/O: it is told the time, the answers and that time has passed, and it says which
frames to send; the sync and the async client move the frames. So its behaviour under loss, delay
and duplication is tested without a network and is the same in both.

A call is one question; an attempt is one sending of it, with a request id of its own. Any attempt's
`ok` ends the call, and so does any error that retrying cannot mend. Other errors count only when
they answer the newest attempt, because an older attempt's "overloaded" says nothing about the
newer one. An attempt is sent again, elsewhere if there is an elsewhere, when its node has been
silent for the attempt's patience, or its connection has ended or was refused; event ids make that
safe, and the body, once encoded, never changes. A node that answers others is busy and not silent:
asking it twice would only make it busier, so there the patience is stretched. What starts a job
is not sent again for silence: that would be another job.

States of a call: in flight (its patience runs), resting (backs off before the next attempt), done
(has an answer or an error). Calls are made only when the window has room for them.

Invariants:
  * at most `INFLIGHT_COUNT_MAX` calls are in flight or resting, besides the one for the map;
  * a call is done at its deadline at the latest, which is counted from its first attempt;
  * a call is finished once; answers that come later are counted in `stray_answers` and dropped.
Does not know: sockets, clocks, threads, what the bodies mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from operator import length_hint
from typing import Any

from meterd.client.partitions import PartitionMap
from meterd.client.settling import Settling
from meterd.protocol.body import pack, unpack_answer
from meterd.protocol.envelope import RequestHeader, decode_answer, encode_request
from meterd.protocol.errors import (
    DeadlineExceeded,
    LocalProtocolError,
    MeterdError,
    RemoteProtocolError,
    Restarting,
    Unreachable,
    exception_of,
)
from meterd.protocol.limits import BODY_SIZE_MAX, DEADLINE_MS_MAX, REQUEST_ID_MAX
from meterd.protocol.messages import kind_of

# Enough to keep a node busy while the next requests are encoded, few enough to be no burden.
INFLIGHT_COUNT_MAX = 16
# How long a node may stay silent; doubles with every silent attempt of a call.
PATIENCE_S = 1.0
PATIENCE_S_MAX = 8.0
# An attempt waits so many times its patience for a node that answers others meanwhile.
STRETCH_MAX = 4
# A listing or a range over old events reads files: asking again early would only double the work.
PATIENCE_READING_S = 4.0
READING_KINDS = frozenset({"usage", "accounts", "events", "feed", "rejected"})
# What one node says no to for reasons of its own: another one may take the same request.
OF_NODE = ("disk_stop", "memory_full", "starting")
# Rest before an attempt after "retry now" or "elsewhere"; doubles, because it was not enough.
REST_S = 0.02
REST_S_MAX = 1.0
# More doublings than reach those bounds; without end they would leave the range of a float.
DOUBLINGS_MAX = 16
# A node that stayed silent is asked last for this long.
SUSPECT_S = 10.0
# The client's own question for the map may take this long; nobody waits for it.
MAP_TIMEOUT_S = 5.0
# The map is asked for at most this often, whatever the versions in the answers say.
MAP_INTERVAL_S = 0.25
# More addresses than any cluster has nodes; a map with more is not believed.
ADDRESSES_COUNT_MAX = 256

Frames = Sequence[bytes]


class Undecided(DeadlineExceeded):
    """A node does not know what became of some events: the same again, soon."""

    hint = "some events are undecided"


class Unsendable(LocalProtocolError):
    """What was passed cannot be sent, and nothing was; the message says what is wrong with it."""

    code = "bad_request"


class Call:
    """One question and what became of it; changed only by its session."""

    __slots__ = (
        "account",
        "address",
        "answer",
        "answered",
        "attempts_count",
        "avoid",
        "body",
        "deadline",
        "error",
        "job",
        "kind",
        "last_error",
        "patience_s",
        "request_ids",
        "resting",
        "rows",
        "sent_at",
        "settling",
        "silent_count",
        "wake",
    )

    def __init__(
        self, kind: str, body: bytes, account: str | None = None, rows: Sequence[int] = ()
    ) -> None:
        """Make a call; raises Unsendable when the body is too large to be sent."""
        if len(body) > BODY_SIZE_MAX:
            raise Unsendable(f"{kind}: a body of {len(body)} bytes; the limit is {BODY_SIZE_MAX}")
        self.kind = kind
        self.body = body
        self.account = account  # decides which node is asked first
        self.rows = rows  # of an ingest job: which of its rows are in the body
        self.settling = Settling() if kind == "ingest" else None
        self.job: Job | None = None
        self.deadline = float("inf")  # set by the first attempt
        self.wake = float("inf")  # when to look at it again
        self.sent_at = 0.0  # the newest attempt
        self.patience_s = 0.0  # of the newest attempt
        self.resting = False
        self.request_ids: list[int] = []  # of its attempts, the newest last
        self.address = ""  # of the newest attempt
        self.avoid = ""  # an address that sent us elsewhere
        self.attempts_count = 0
        self.silent_count = 0
        self.answered = False  # has any node answered any attempt?
        self.last_error: MeterdError | None = None
        self.answer: bytes | None = None
        self.error: MeterdError | None = None

    def body_of_answer(self) -> bytes:
        """Give the body of the answer, or raise the error that ended the call."""
        if self.error is not None:
            raise self.error
        if self.answer is None:
            raise AssertionError("a call was asked for its answer before it was done")
        return self.answer

    def result(self) -> dict[str, Any]:
        """Give the answer as a map, or raise the error that ended the call."""
        return answer_map(self.body_of_answer())


def answer_map(body: bytes) -> dict[str, Any]:
    """Decode the body of an answer, or raise RemoteProtocolError."""
    fields = unpack_answer(body)
    if type(fields) is not dict:
        raise RemoteProtocolError("malformed", "the body of an answer is not a map")
    return fields


def doubled(seconds: float, times: int, seconds_max: float) -> float:
    """Give a time that was doubled so many times, but not more than the maximum."""
    return min(seconds * 2.0 ** min(times, DOUBLINGS_MAX), seconds_max)


def error_of(body: bytes) -> MeterdError:
    """Give the error that the body of an error answer stands for."""
    try:
        return exception_of(unpack_answer(body))
    except RemoteProtocolError as error:
        return error


class Job:
    """Calls that somebody waits for together, made one by one as the window has room.

    Once one call has failed no more are made: whoever waits wants to know now. What making a call
    raises is kept in `error`.
    """

    __slots__ = ("calls", "done", "error", "open_count", "source")

    def __init__(self, source: Iterable[Call]) -> None:
        self.source: Iterator[Call] | None = iter(source)  # None once no more are to be made
        self.calls: list[Call] = []  # those that were begun, in order
        self.open_count = 0  # of those, not yet answered
        self.error: Exception | None = None
        self.done = False

    def make_call(self) -> Call | None:
        """Make the next call, or return None when there is none."""
        if self.source is None:
            return None
        try:
            call = next(self.source, None)
        except (MeterdError, TypeError, ValueError, OverflowError) as error:
            self.error = error  # its owner's mistake, and no other job's
            call = None
        # A list knows that nothing is left, which saves most jobs a second look.
        if call is None or length_hint(self.source, 1) == 0:
            self.source = None
        if call is None:
            return None
        call.job = self
        self.calls.append(call)
        self.open_count += 1
        return call


class Session:
    """All calls of one client; changed through start, on_answer, on_lost, on_tick and abandon."""

    def __init__(self, seeds: Sequence[str], timeout_s: float, jitter: Callable[[], float]) -> None:
        """Begin with the addresses of some nodes; `jitter` gives numbers from 0 to 1."""
        self.timeout_s = timeout_s
        self._seeds = tuple(seeds)
        self.addresses = list(dict.fromkeys(seeds))  # seeds first, then the nodes of the map
        self.map: PartitionMap | None = None
        self.stray_answers = 0
        self.malformed_answers = 0
        self._jitter = jitter
        self._home = self.addresses[0]  # asked when any node will do: the last that answered
        self._suspects: dict[str, float] = {}  # address → until when it is asked last
        self._heard: dict[str, float] = {}  # address → when it answered last, whatever it was
        self._waiting: deque[Job] = deque()  # jobs that may have more calls to make
        self._active: dict[Call, None] = {}
        self._pending: dict[int, Call] = {}  # request id → call
        self._map_call: Call | None = None
        self._map_asked_at = float("-inf")
        self._next_request_id = 1
        self._sends: list[tuple[str, Frames]] = []
        self._finished: list[Job] = []

    # What the shell asks for

    def take_sends(self) -> list[tuple[str, Frames]]:
        """Give the (address, frames) to send now; each is given once."""
        sends, self._sends = self._sends, []
        return sends

    def has_sends(self) -> bool:
        """Tell whether there is something to send."""
        return bool(self._sends)

    def take_finished(self) -> list[Job]:
        """Give the jobs that were finished since last asked; each is given once."""
        finished, self._finished = self._finished, []
        return finished

    def next_wake(self) -> float | None:
        """Give the time at which `on_tick` must be called, if any; 0 means at once."""
        if self._waiting and len(self._active) < INFLIGHT_COUNT_MAX:
            return 0.0
        return min((call.wake for call in self._active), default=None)

    # What the shell tells

    def start(self, now: float, job: Job) -> None:
        """Take a job; its first call begins at once when there is room."""
        self._waiting.appendleft(job)  # one call waits less for many than many for one
        self._begin_next(now)

    def on_answer(self, now: float, address: str, frames: Frames) -> None:
        """Take one message from a node."""
        try:
            header, body = decode_answer(frames)
        except RemoteProtocolError:
            self.malformed_answers += 1  # nobody it could be told to; the patience will end
            return
        self._suspects.pop(address, None)
        self._heard[address] = now
        if header.status == "ok":
            self._home = address
        call = self._pending.get(header.id) if header.id is not None else None
        if call is None:
            self.stray_answers += 1
        else:
            call.answered = True
            if header.status == "ok":
                self._on_ok(now, call, header.id, body)
            else:
                self._on_error(now, call, header.id, error_of(body))
        if self.map is None or header.map_version > self.map.version:
            self._ask_for_map(now)

    def on_lost(self, now: float, address: str) -> None:
        """Take note that the connection to a node has ended, or was refused.

        What waits for its answer is soon asked elsewhere. Where there is no elsewhere it waits on:
        the connection is made anew, and what was not sent is sent then.
        """
        others = [other for other in self.addresses if other != address]
        if all(self._suspects.get(other, 0.0) > now for other in others):
            return
        self._suspects[address] = now + SUSPECT_S
        for call in self._active:
            if call.address == address and not (call.resting or kind_of(call.kind).is_of_node):
                self._rest(now, call, doubled(REST_S, call.attempts_count - 1, REST_S_MAX))

    def on_tick(self, now: float) -> None:
        """Look at what has waited long enough, and begin one call more if there is room."""
        for call in [call for call in self._active if call.wake <= now]:
            if now >= call.deadline:
                known = None if call.settling is None else call.settling.so_far()
                self._finish(call, known, None if known else self._give_up(call))
                continue
            if not call.resting:
                patient_until = self._patient_until(call)
                if now < patient_until:
                    call.wake = min(call.deadline, patient_until)
                    continue
                call.silent_count += 1
                self._suspects[call.address] = now + SUSPECT_S
            self._attempt(now, call)
        self._begin_next(now)

    def abandon(self, job: Job) -> None:
        """Forget a job that nobody waits for any longer."""
        job.source = None
        for call in job.calls:
            if call in self._active:
                self._release(call)

    def _on_ok(self, now: float, call: Call, request_id: int | None, body: bytes) -> None:
        """End a call, or have what is undecided of its events sent again."""
        answer: bytes | None = body
        if call.settling is not None:
            try:
                # A newer attempt may store what an older one's answer calls rejected.
                answer = call.settling.take(body, late=request_id != call.request_ids[-1])
            except RemoteProtocolError as error:
                self._finish(call, None, error)
                return
        if answer is not None:
            self._finish(call, answer, None)
        else:
            self._on_error(now, call, request_id, Undecided())

    # How it decides

    def _begin_next(self, now: float) -> None:
        """Begin one call, of the job whose turn it is, if the window has room.

        One at a time, so that a call is sent before the next one is encoded.
        """
        while self._waiting and len(self._active) < INFLIGHT_COUNT_MAX:
            job = self._waiting.popleft()
            call = job.make_call()
            if job.source is not None:
                self._waiting.append(job)
            if call is not None:
                self._begin(now, call, self.timeout_s)
                return
            self._maybe_end(job)

    def _begin(self, now: float, call: Call, timeout_s: float) -> None:
        call.deadline = now + timeout_s
        self._active[call] = None
        self._attempt(now, call)

    def _attempt(self, now: float, call: Call) -> None:
        """Send a call once more."""
        address = self._choose(now, call)
        request_id = self._next_request_id
        self._next_request_id = request_id % REQUEST_ID_MAX + 1
        self._pending[request_id] = call
        call.request_ids.append(request_id)
        call.address = address
        call.attempts_count += 1
        call.resting = False
        patience = PATIENCE_READING_S if call.kind in READING_KINDS else PATIENCE_S
        patience = doubled(patience, call.silent_count, PATIENCE_S_MAX)
        if kind_of(call.kind).starts_job:
            patience = inf  # up to its deadline
        call.sent_at, call.patience_s = now, patience * (1 + self._jitter() / 2)
        call.wake = min(call.deadline, now + call.patience_s)
        left_ms = min(int((call.deadline - now) * 1000), DEADLINE_MS_MAX)
        version = None if self.map is None else self.map.version
        header = RequestHeader(request_id, call.kind, max(left_ms, 0), version)
        self._sends.append((address, encode_request(header, call.body)))

    def _patient_until(self, call: Call) -> float:
        """Say when the node's silence about the newest attempt becomes too long."""
        silent_since = max(call.sent_at, self._heard.get(call.address, 0.0))
        return min(silent_since + call.patience_s, call.sent_at + STRETCH_MAX * call.patience_s)

    def _choose(self, now: float, call: Call) -> str:
        """Choose the leader if it is known, else the last node that answered, suspects last.

        Of what is about a node itself only those are asked that the user has named.
        """
        leader, some = None, self.addresses
        if call.account is not None and self.map is not None:
            leader = self.map.leader_of(call.account)
        first = leader or self._home
        if kind_of(call.kind).is_of_node:
            some = list(self._seeds)
            first = first if first in some else some[0]
        if first not in self._suspects and first != call.avoid:
            return first

        def reluctance(address: str) -> tuple[float, bool]:
            until = self._suspects.get(address, 0.0)
            return (until if until > now else 0.0, address == call.avoid)

        return min([first, *some], key=reluctance)

    def _on_error(self, now: float, call: Call, request_id: int | None, error: MeterdError) -> None:
        may_go_on = isinstance(error, Restarting) and kind_of(call.kind).starts_job
        if error.retry == "never" or may_go_on:
            self._finish(call, None, error)
            return
        if call.resting or request_id != call.request_ids[-1]:
            return  # an older attempt's; the newer one decides
        call.last_error = error
        alone = len(self.addresses) == 1 or kind_of(call.kind).is_of_node
        of_node = error.code in OF_NODE and not alone
        if error.retry == "later" and not of_node:
            rest = max(getattr(error, "retry_after_ms", 0) / 1000, REST_S)
        else:
            rest = doubled(REST_S, call.attempts_count - 1, REST_S_MAX)
        if of_node or error.retry == "elsewhere" or isinstance(error, Undecided):
            # Who does not know may be cut off from who does: the next attempt goes to another node.
            call.avoid = call.address
            self._ask_for_map(now)
        self._rest(now, call, rest)

    def _rest(self, now: float, call: Call, rest_s: float) -> None:
        """Make the next attempt after a while."""
        call.resting = True
        call.wake = min(call.deadline, now + rest_s * (1 + self._jitter() / 2))

    def _give_up(self, call: Call) -> MeterdError:
        """Say why a call ends without an answer."""
        if not call.answered:
            return Unreachable(
                f"no answer to {call.kind} within {self.timeout_s:g} s"
                f" from {', '.join(self.addresses)}"
            )
        error = DeadlineExceeded(
            f"{call.kind} was not settled within {self.timeout_s:g} s"
            f" and {call.attempts_count} attempts; the last answer: {call.last_error}"
        )
        error.__cause__ = call.last_error
        return error

    def _release(self, call: Call) -> None:
        del self._active[call]
        for request_id in call.request_ids:
            self._pending.pop(request_id, None)
        call.body = b""  # may be megabytes

    def _finish(self, call: Call, answer: bytes | None, error: MeterdError | None) -> None:
        self._release(call)
        call.answer, call.error = answer, error
        job = call.job
        if job is None:
            self._map_call = None
            self._learn_map(answer)
        else:
            job.open_count -= 1
            if error is not None:
                job.source = None
            self._maybe_end(job)

    def _maybe_end(self, job: Job) -> None:
        if job.open_count == 0 and job.source is None and not job.done:
            job.done = True
            self._finished.append(job)

    # The partition map

    def _ask_for_map(self, now: float) -> None:
        if self._map_call is None and now - self._map_asked_at >= MAP_INTERVAL_S:
            self._map_asked_at = now
            self._map_call = Call("map", pack({}))
            self._begin(now, self._map_call, MAP_TIMEOUT_S)

    def _learn_map(self, answer: bytes | None) -> None:
        """Use a newer map; one that is not understood leaves everything as it was."""
        if answer is None:
            return
        try:
            learned = PartitionMap(answer_map(answer))
        except (RemoteProtocolError, KeyError, TypeError, ValueError, AttributeError):
            self.malformed_answers += 1
            return
        if len(learned.nodes) > ADDRESSES_COUNT_MAX:
            self.malformed_answers += 1
            return
        if self.map is not None and learned.version < self.map.version:
            return
        self.map = learned
        # One node is reached as it was reached: the address it calls itself by may be another.
        if len(learned.nodes) > 1:
            self.addresses = list(dict.fromkeys([*self._seeds, *learned.nodes.values()]))
        for known in (self._suspects, self._heard):
            for address in known.keys() - set(self.addresses):
                del known[address]
