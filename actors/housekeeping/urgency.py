"""How much of the machine work in the background takes: the more of it waits, the more.

A thread begins with the priority of its actor and can only lower it without privileges, so each job
chooses anew, in a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading

# Of what never becomes urgent, and of what has just become so.
BACKGROUND_NICE = 10
# One step of priority for so many that wait beyond what is at ease: 40 more, and it is as urgent
# as what makes them wait.
WAITING_FOR_A_STEP = 4


def nice_of(waiting: int, at_ease: int) -> int:
    """Return the nice value for work of which so much waits: 0 to BACKGROUND_NICE."""
    return max(0, BACKGROUND_NICE - max(0, waiting - at_ease) // WAITING_FOR_A_STEP)


def set_nice(value: int) -> None:
    """Have this thread go back to a priority, if it is not behind that already."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        own = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, max(own, value))


def take_idle_time_only() -> None:
    """Have this thread run when nobody else wants its processor, and stop at once when one does.

    At a low priority alone it would keep an actor that is woken waiting for the rest of its slice,
    milliseconds long: actors run under SCHED_BATCH, which interrupts nobody but such threads.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
