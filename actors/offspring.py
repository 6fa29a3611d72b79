"""Forks one actor: what happens between the supervisor's fork and the actor's loop.

The child lives only as long as its parent: the kernel kills it when the supervisor ends
(PDEATHSIG), and its own loop looks too.  Signals are blocked across the fork, so none is taken by a
child that still has the supervisor's handlers.  A child leaves by `os._exit`: nothing of the
supervisor's exit handlers runs twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import random
import signal
import sys
from collections.abc import Collection

import psutil

from meterd.actors import endings
from meterd.actors.actor import Actor, Lifeline, main
from meterd.actors.machine import journal
from meterd.actors.options import Options

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
# Its reading and writing is never in the way of an acknowledgement; nor are its threads, which do
# all that takes long (housekeeping/jobs.py).
BACKGROUND = frozenset({"retention_sweeper"})
FOREGROUND_NICE = -10
# A thread beside an actor's loop calls one kernel after another, each without the interpreter, and
# needs it in between for microseconds: with the usual 5 ms it waits longer than it works.
SWITCH_SECONDS = 0.0005

_libc = ctypes.CDLL(None, use_errno=True)


def fork(
    kind: type[Actor], options: Options, run_dir: str, inherited: Collection[int]
) -> tuple[int, int]:
    """Start an actor; return its process id and the end of its lifeline to read.

    `inherited` are the supervisor's descriptors that the child must not keep.
    """
    reading, writing = os.pipe()
    supervisor = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(kind, options, run_dir, writing, [reading, *inherited], supervisor)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(writing)
    os.set_blocking(reading, False)
    return pid, reading


def _live(
    kind: type[Actor],
    options: Options,
    run_dir: str,
    writing: int,
    inherited: Collection[int],
    supervisor: int,
) -> None:
    """Be the actor, from the fork to the end of the process; never return."""
    status = endings.INTERNAL
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _libc.prctl(PR_SET_NAME, f"meterd:{kind.name}"[:15].encode())
        if os.getppid() != supervisor:
            os._exit(endings.INTERNAL)  # it died before the kernel knew that we follow
        for descriptor in inherited:
            os.close(descriptor)
        _reset_signals()
        faulthandler.enable()
        random.seed()
        sys.setswitchinterval(SWITCH_SECONDS)
        journal.open_journal(kind.name, options.log)
        _queue_up()
        if kind.name in BACKGROUND:
            _step_back()
        status = main(kind(options, run_dir, Lifeline(writing)))
    except BaseException:
        logging.getLogger(__name__).exception("ended by a bug")
    finally:
        os._exit(status)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # Ctrl-C reaches the whole process group; the supervisor alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _queue_up() -> None:
    """Interrupt nobody when there is work, if all processors are busy.

    An actor that is woken by a message would take the processor from the one that sent it; if it
    waits a little, more messages are there, and all of them cost less together.  On a processor
    that is free it runs at once.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def step_forward() -> None:
    """Run as soon as there is work: others take this node for dead when it is late.

    Threads that this process makes afterwards do the same.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):  # needs LimitNICE, or root
        os.nice(FOREGROUND_NICE)


def _step_back() -> None:
    with contextlib.suppress(OSError, psutil.Error):  # a sandbox may forbid it
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
