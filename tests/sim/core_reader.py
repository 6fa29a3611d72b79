"""Ops of the log files of a simulated disk: the product's reader, without its thread."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from meterd.actors.replicating.catching_up import CatchingUp
from meterd.actors.replicating.op_reader import ANSWER_SIZE_MAX, Answer, Asked, OpReader, _Files
from meterd.core.log.op_places import Found, OpPlace, OpPlaces
from meterd.core.raft.events import ReadOps
from meterd.protocol import log_format
from meterd.protocol.log_format import ACTIVE_NAME, full_name, number_of
from meterd.protocol.raft_messages import UNKNOWN
from tests.sim.core_usage import DIRECTORY
from tests.support.crash_disk import CrashDisk

if TYPE_CHECKING:
    from tests.sim.core_machine import CoreMachine

# How long a read takes, in µs.
READ_US = (100, 3_000)


class SimulatedFiles(_Files):
    """The log files of a simulated disk, by number."""

    def __init__(self, files: CrashDisk) -> None:
        super().__init__(DIRECTORY)
        self._disk = files

    def oldest(self, newest: int) -> int:
        found = {number_of(name) for name in self._disk.names(DIRECTORY)}
        number = newest
        while number - 1 in found:
            number -= 1
        return number

    def size(self, number: int) -> int:
        return len(self._content(number))

    def _content(self, number: int) -> bytearray:
        names = self._disk.names(DIRECTORY)
        name = full_name(number) if full_name(number) in names else ACTIVE_NAME
        return self._disk.content(f"{DIRECTORY}/{name}")

    def _read(self, number: int, offset: int, size: int) -> bytes:
        data = bytes(self._content(number)[offset : offset + size])
        if len(data) != size:
            raise log_format.Damaged(offset, "the file ends before it")
        return data


class SimulatedOps(OpReader):
    """What was asked last of each group and follower waits, and is read when its time comes."""

    def __init__(self, files: CrashDisk) -> None:
        self._files = SimulatedFiles(files)
        self._places = OpPlaces()
        self._size_max = ANSWER_SIZE_MAX
        self._readable_from = self._oldest = 0
        self._void: dict[int, int] = {}
        self._waiting: OrderedDict[Any, Any] = OrderedDict()
        self._answered: list[Answer] = []
        self._machine: CoreMachine | None = None

    def catching_up(self, machine: CoreMachine, end: OpPlace) -> CatchingUp:
        """Return who asks it."""
        self._machine = machine
        made = object.__new__(CatchingUp)
        made._end, made._reader, made._has_asked = end, self, False
        return made

    def ask(self, asked: Any) -> None:
        machine = self._machine
        assert machine is not None
        if asked.key not in self._waiting:
            delay = machine.random.randint(*READ_US)
            machine.world.after(delay, machine, machine.ops_read, machine.boot, asked.key)
        self._waiting[asked.key] = asked

    def _before(self, wanted: ReadOps, places: Found) -> tuple[int, int]:
        """Now and then what comes before is in a file that is gone."""
        machine = self._machine
        assert machine is not None
        if machine.random.random() < 0.3:
            return UNKNOWN, 0
        return super()._before(wanted, places)

    def read_next(self, key: Any) -> None:
        """Read what was asked under a key."""
        asked = self._waiting.pop(key)
        assert self._machine is not None
        if self._machine.random.random() < 0.05:
            found = None  # it cannot be opened just now
        else:
            found = self.read(asked) if isinstance(asked, Asked) else self.fill(asked)
        self._answered.append(Answer(asked, found))

    def take(self) -> list[Answer]:
        answers, self._answered = self._answered, []
        return answers
