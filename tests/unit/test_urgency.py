"""How much of the machine background work takes."""

import os
import threading

from meterd.actors.housekeeping.urgency import BACKGROUND_NICE, nice_of, set_nice


def in_a_thread(*values: int) -> list[int]:
    """Set nice values one after another; what the thread's priority was after each."""
    found = []

    def work() -> None:
        for value in values:
            set_nice(value)
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found


def test_work_becomes_more_urgent_the_more_waits() -> None:
    values = [nice_of(waiting, 32) for waiting in range(200)]
    assert values[:33] == [BACKGROUND_NICE] * 33
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0


def test_a_thread_goes_back_alone_and_never_forward() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    back = min(19, own + 5)
    assert in_a_thread(back, own) == [back, back]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
