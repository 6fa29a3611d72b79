"""Reads ops from the log files for followers that are behind, in a thread beside the actor's loop.

The loop asks with what the engine wants (`ReadOps`) and takes what was found when `descriptor` is
readable.  Checksums are checked again: what does not check is not sent, but reported (`Damaged`),
and the engine has it repaired.  (Who gets it checks the chain of digests, too.)  What is in no file
any more is an answer, too: then only a copy of a peer helps.

Groups that are behind together want slices of the same records.  So what waits for one follower is
answered together, from one stretch of the log, and records that were read are kept a while.  At
most one request for each group and follower waits: who asks again means the newer one, or, if it is
the same, the answer that is to come.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.actors.log.opened_log import open_log
from meterd.core.frozen import frozen
from meterd.core.kernels import scan
from meterd.core.log.group_logs import sizes_of
from meterd.core.log.op_places import FileIndex, Found, OpPlace, OpPlaces
from meterd.core.raft.events import Damaged, OpsRead, ReadOps
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import Record, full_name, number_of
from meterd.protocol.raft_messages import UNKNOWN, Append, Envelope, Op, RepairReply
from meterd.protocol.raft_records import ENGINE_KINDS, RecordSlice, engine_body

# What one answer may hold; a single larger op is one, too.
ANSWER_SIZE_MAX: Final = 2 * 1024 * 1024
# Of how much of the log answers for so many groups may be that are given together: sending that
# takes some 20 ms.  Those for fewer groups are of more, and those for a few of all there is.
STRETCH_SIZE: Final = 1024 * 1024
STRETCH_GROUPS: Final = 128
FEW: Final = 8
# Records kept, by their bytes: what 257 groups want at once lies in a few hundred records.
RECORDS_SIZE_MAX: Final = 32 * 1024 * 1024
# A file is indexed in pieces of this size, or of its largest block.
WINDOW_SIZE: Final = 4 * 1024 * 1024
OPEN_FILES_MAX: Final = 8
NO_LIMIT: Final = OpPlace(1 << 62, 0)

# What waits: kind of request, group, follower.
Key = tuple[str, int, int]

logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """One request, and how much of the files is to be read."""

    wanted: ReadOps
    end: OpPlace  # where the durable part of the log ends

    @property
    def key(self) -> Key:
        return "ops", self.wanted.group, self.wanted.to


class Unfilled(NamedTuple):
    """A message some of whose ops are only on disk, and where: it goes when they are read."""

    envelope: Envelope
    message: Append | RepairReply
    places: dict[int, OpPlace]  # by index

    @property
    def key(self) -> Key:
        return "message", self.message.group, self.envelope.target


class Answer(NamedTuple):
    """What became of a request."""

    asked: Asked | Unfilled
    # OpsRead for Asked, the message for Unfilled; None: no file has these ops any more.
    found: OpsRead | Append | RepairReply | Damaged | None


class Gone(Exception):
    """A log file was deleted."""


class OpReader:
    """See the module."""

    def __init__(
        self,
        directory: str,
        answer_size_max: int = ANSWER_SIZE_MAX,
        void: Mapping[int, int] | None = None,
    ) -> None:
        """`void`: of a group, the number of the last file whose ops of it count for nothing."""
        self._void = void or {}
        self._files = _Files(directory)
        self._places = OpPlaces()
        self._size_max = answer_size_max
        self._readable_from = 0  # number of the first log file behind the last damaged one
        self._oldest = 0  # number of the oldest log file, when it was last looked at
        self._asked: OrderedDict[Key, Asked | Unfilled] = OrderedDict()
        self._under_way: dict[Key, Asked | Unfilled] = {}  # being read, or not taken yet
        self._answers: list[list[Answer]] = []  # those that are given together
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._wake = os.pipe()
        os.set_blocking(self._wake[0], False)
        os.set_blocking(self._wake[1], False)
        self._thread = threading.Thread(target=self._run, name="op_reader", daemon=True)
        self._thread.start()

    @property
    def descriptor(self) -> int:
        """Readable when `take` has something."""
        return self._wake[0]

    def ask(self, asked: Asked | Unfilled) -> None:
        """Have ops read, at the latest after `go`.

        What was asked before for this group and follower is forgotten.
        """
        with self._changed:
            if not _is_same(asked, self._under_way.get(asked.key)):
                self._asked[asked.key] = asked

    def go(self) -> None:
        """All is asked that can be answered together."""
        with self._changed:
            if self._asked:
                self._changed.notify()

    def take(self) -> list[Answer]:
        """Return what was found for one follower, the rest at the next call.

        Raises what has ended the thread.
        """
        try:
            os.read(self._wake[0], 4096)
        except BlockingIOError:
            return []
        with self._changed:
            if self._failure is not None:
                raise self._failure
            answers = self._answers.pop(0) if self._answers else []
            for answer in answers:
                if self._under_way.get(answer.asked.key) is answer.asked:
                    del self._under_way[answer.asked.key]
            if self._answers:
                os.write(self._wake[1], b"!")
        return answers

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._files.close()
        for descriptor in self._wake:
            os.close(descriptor)

    # The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._asked and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                together = self._next()
            try:
                answers = self._answer(together)
            except BaseException as error:  # handed to the actor's loop
                self._failure = error
                os.write(self._wake[1], b"!")
                return
            with self._changed:
                for asked in together[len(answers) :]:
                    del self._under_way[asked.key]
                    self._asked.setdefault(asked.key, asked)
                if not self._answers:
                    os.write(self._wake[1], b"!")
                self._answers.append(answers)

    def _next(self) -> list[Asked | Unfilled]:
        """Take what waits for one follower, if it is to be looked for."""
        _, first = self._asked.popitem(last=False)
        together = [first]
        if isinstance(first, Asked):
            for key in [key for key in self._asked if key[0] == "ops" and key[2] == first.key[2]]:
                together.append(self._asked.pop(key))
        self._under_way.update({asked.key: asked for asked in together})
        return together

    def _answer(self, together: list[Asked | Unfilled]) -> list[Answer]:
        """Answer at least the first of these, and put those first that are answered."""
        first = together[0]
        if not isinstance(first, Asked):
            return [Answer(first, self.fill(first))]
        found, answers, far = [], [], []
        end = max(asked.end for asked in together if isinstance(asked, Asked))
        is_there = self._look_at(end)
        for asked in together:
            assert isinstance(asked, Asked)
            places = self._places_of(asked, end) if is_there else None
            place = places.get(asked.wanted.first) if places is not None else None
            if places is None or place is None:
                answers.append(Answer(asked, None))
            else:
                found.append((place, asked, places))
        limit = _limit([place for place, _, _ in found])
        for place, asked, places in found:
            if place < limit:
                answers.append(Answer(asked, self._read(asked.wanted, places, limit)))
            else:
                far.append(asked)
        together[:] = [*[answer.asked for answer in answers], *far]
        return answers

    def read(self, asked: Asked) -> OpsRead | Damaged | None:
        """Return the ops wanted, at least the first; or which is damaged; None: no file has it."""
        places = self._places_of(asked, asked.end) if self._look_at(asked.end) else None
        if places is None or places.get(asked.wanted.first) is None:
            return None
        return self._read(asked.wanted, places, NO_LIMIT)

    def _read(self, wanted: ReadOps, places: Found, limit: OpPlace) -> OpsRead | Damaged | None:
        """Read what lies before `limit`, at least the first op."""
        try:
            return self._ops(wanted, self._before(wanted, places), places, limit)
        except Gone:
            return None

    def fill(self, unfilled: Unfilled) -> Append | RepairReply | Damaged | None:
        """Return a message with the ops that are only on disk."""
        message = unfilled.message
        ops = []
        for op in message.ops:
            place = unfilled.places.get(op.index)
            try:
                if place is not None:
                    op = self._files.op(place, message.group, op.index)
            except log_format.Damaged:
                return Damaged(op.index)
            except Gone:
                return None
            ops.append(op)
        return message._replace(ops=tuple(ops))

    def _ops(
        self,
        wanted: ReadOps,
        before: tuple[int, int],
        places: Found,
        limit: OpPlace,
    ) -> OpsRead | Damaged:
        ops: list[Op] = []
        size = 0
        for index in range(wanted.first, wanted.last + 1):
            place = places.get(index)
            if place is None or (ops and place >= limit):
                break
            try:
                op = self._files.op(place, wanted.group, index)
            except log_format.Damaged:
                if not ops:
                    return Damaged(index)
                break
            size += op.size
            if ops and size > self._size_max:
                break
            ops.append(op)
        return OpsRead(wanted.to, wanted.term, *before, tuple(ops))

    def _before(self, wanted: ReadOps, places: Found) -> tuple[int, int]:
        """Return term and digest of the op before the first one; not known: UNKNOWN."""
        index = wanted.first - 1
        place = places.get(index)
        if place is None:
            return UNKNOWN, 0
        try:
            op = self._files.op(place, wanted.group, index)
        except (Gone, log_format.Damaged):
            return UNKNOWN, 0
        return op.term, op.digest

    def _look_at(self, end: OpPlace) -> bool:
        """See which files there are, and what is new in the newest; return whether it is there."""
        try:
            self._oldest = max(self._files.oldest(end.file_number), self._readable_from)
            self._places.gone(self._oldest)
            self._index(end.file_number, end.offset)
        except Gone:
            return False
        return True

    def _places_of(self, asked: Asked, end: OpPlace) -> Found | None:
        """Return where the ops lie; index files until the first is found.  None: one has gone."""
        wanted = asked.wanted
        oldest = max(self._oldest, self._void.get(wanted.group, 0) + 1)
        search = self._places.search(
            wanted.group, wanted.first, wanted.last, oldest, end.file_number
        )
        try:
            number = next(search)
            while True:
                limit = end.offset if number == end.file_number else None
                number = search.send(self._index(number, limit))
        except StopIteration as found:
            places: Found = found.value
            return places
        except Gone:
            return None

    def _index(self, file_number: int, end: int | None) -> FileIndex:
        """Index a file up to `end`, or all of a full one.  Raises Gone at damage."""
        if file_number < self._readable_from:
            raise Gone
        index = self._places.index_of(file_number) or FileIndex(full_name(file_number))
        limit = self._files.size(file_number) if end is None else end
        try:
            while index.end < limit:
                index.take(*self._files.blocks(file_number, index.end, limit))
        except (Corrupt, log_format.Damaged) as damage:
            logger.error("followers get no ops from log file %d or before: %s", file_number, damage)
            self._readable_from = file_number + 1
            raise Gone from damage
        self._places.put(file_number, index, full=end is None)
        return index


class _Files:
    """The log files, opened by number, and the records read last."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open: OrderedDict[int, int] = OrderedDict()
        self._records: OrderedDict[OpPlace, _Ops] = OrderedDict()
        self._size = 0

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def oldest(self, newest: int) -> int:
        """Return the number of the oldest file behind which none is missing."""
        found = {number_of(name) for name in os.listdir(self._directory)}
        number = newest
        while number - 1 in found:
            number -= 1
        return number

    def size(self, number: int) -> int:
        return os.fstat(self._descriptor(number)).st_size

    def blocks(self, number: int, begin: int, limit: int) -> tuple[NDArray[np.uint8], int]:
        """Return whole blocks of a file from offset `begin` on, and `begin`.  Raises Corrupt."""
        size = WINDOW_SIZE
        while True:
            size = min(size, limit - begin)
            data = np.frombuffer(self._read(number, begin, size), np.uint8)
            whole = int(scan.whole_blocks(frozen(data)))
            if whole:
                return data[:whole], begin
            if size == limit - begin:
                raise Corrupt(full_name(number), begin, "no block of a log (places)")
            size *= 2

    def op(self, place: OpPlace, group: int, index: int) -> Op:
        """Return an op, its record's checksums verified.  Raises Damaged."""
        ops = self._records.get(place)
        if ops is None:
            sizes = self._read(place.file_number, place.offset, log_format.RECORD_HEADER_SIZE)
            size = log_format.record_sizes(sizes)[0]
            if not log_format.RECORD_HEADER_SIZE <= size <= log_format.RECORD_SIZE_MAX:
                raise log_format.Damaged(place.offset, f"record size {size} is not valid")
            ops = self._records[place] = _Ops(log_format.parse_record(self._read(*place, size)))
            self._size += size
            while self._size > RECORDS_SIZE_MAX and len(self._records) > 1:
                self._size -= self._records.popitem(last=False)[1].record.size
        self._records.move_to_end(place)
        return ops.op(group, index)

    def _read(self, number: int, offset: int, size: int) -> bytes:
        """Raises Damaged when the disk cannot read it, or there is less."""
        try:
            data = os.pread(self._descriptor(number), size, offset)
        except OSError as error:
            raise log_format.Damaged(offset, f"the disk cannot read it: {error}") from error
        if len(data) != size:
            raise log_format.Damaged(offset, "the file ends before it")
        return data

    def _descriptor(self, number: int) -> int:
        """Open a file that may become full, and so be renamed, at this moment.  Raises Gone."""
        if number not in self._open:
            self._open[number] = self._open_number(number)
            if len(self._open) > OPEN_FILES_MAX:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(number)
        return self._open[number]

    def _open_number(self, number: int) -> int:
        try:
            return open_log(self._directory, number)[1]
        except FileNotFoundError:
            raise Gone from None
        except Corrupt as damage:
            raise log_format.Damaged(damage.offset, damage.reason) from damage


def _limit(firsts: list[OpPlace]) -> OpPlace:
    """Return the end of the stretch of the log that answers together come from."""
    if len(firsts) <= FEW:
        return NO_LIMIT
    begin = min(firsts)
    size = STRETCH_SIZE * max(1, STRETCH_GROUPS // len(firsts))
    return OpPlace(begin.file_number, begin.offset + size)


def _is_same(asked: Asked | Unfilled, other: Asked | Unfilled | None) -> bool:
    """Does the same follower wait for the same ops already?"""
    return isinstance(asked, Asked) and isinstance(other, Asked) and asked.wanted == other.wanted


class _Ops:
    """The ops of a record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        slices = record.slices
        columns = [slices[name].tolist() for name in ("partition", "index", "term", "digest")]
        rows = zip(*columns, sizes_of(record).tolist(), strict=True)
        self._rows = {row[0]: (number, *row[1:]) for number, row in enumerate(rows)}

    def op(self, group: int, index: int) -> Op:
        """Raises Damaged when it is not there."""
        number, found, term, (low, high), size = self._rows.get(group, _NONE)
        if found != index:
            raise log_format.Damaged(self.record.offset, f"no op {index} of group {group}")
        is_engines = self.record.kind in ENGINE_KINDS
        body = engine_body(self.record) if is_engines else RecordSlice(self.record, number)
        return Op(index, term, low | high << 64, self.record.kind, size, body)


_NONE: Final = (0, 0, 0, (0, 0), 0)
