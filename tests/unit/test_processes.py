"""What the processes of a node take: looked at, but not all the time."""

import os

from meterd.actors.machine.processes import LOOK_SHARE, Processes, Usage


def test_a_long_look_is_not_taken_again_soon() -> None:
    now, looked = [100.0], []

    def look(pid: int) -> Usage | None:
        looked.append(pid)
        now[0] += 0.5
        return None if pid == 3 else Usage(float(len(looked)), pid, pid)

    processes = Processes(look, lambda: now[0])
    pids = {"usage": 1, "router": 2, "gone": 3}
    first = processes.usages(pids)
    assert first.keys() == {"usage", "router"} and looked == [1, 2, 3]
    now[0] += 1.5 * LOOK_SHARE - 0.1
    assert processes.usages(pids) == first and looked == [1, 2, 3]
    now[0] += 0.1
    assert processes.usages(pids) != first and looked == [1, 2, 3] * 2
    # An actor that was started again is looked at at once.
    assert processes.usages(pids | {"router": 4})["router"].resident_bytes == 4


def test_its_own_process() -> None:
    usage = Processes().usages({"own": os.getpid()})["own"]
    assert usage.cpu_seconds > 0
    assert usage.resident_bytes >= usage.proportional_bytes > 0
