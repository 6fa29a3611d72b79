"""The exit codes of the two programs: one table each.

Scripts, systemd units and cron jobs decide by these numbers, so they never change their meaning.
When several outcomes of `meterctl` apply, the worst wins: `worst` knows the order.
"""

from collections.abc import Iterable
from enum import IntEnum


class DaemonExit(IntEnum):
    """How `meterd` ends. systemd restarts it after 69, 70, 73, 74 and 75, and after no other."""

    CLEAN = 0  # stopped after checkpoint and flush
    USAGE = 64  # wrong flags
    CORRUPT = 65  # data is damaged: an operator must look
    UNAVAILABLE = 69  # a port that is needed cannot be bound
    INTERNAL = 70  # a bug
    CANNOT_CREATE = 73  # a file or directory could not be made
    IO_ERROR = 74  # reading or writing failed, a full disk at the start included
    TEMPORARY = 75  # worth another try
    PERMISSION = 77  # not allowed by the operating system
    CONFIGURATION = 78  # a key or value in the configuration is wrong
    IDENTITY = 79  # the directory belongs to another node or cluster, or to a newer version


class AdminExit(IntEnum):
    """How `meterctl` ends."""

    GOOD = 0  # done; for a check: everything asked is good
    NO = 1  # the answer is no: unhealthy, totals differ
    USAGE = 2  # wrong arguments
    UNREACHABLE = 3  # no node answered in time
    NOT_ALLOWED = 4  # not authenticated, or not allowed
    NOT_FOUND = 5  # no such metric, account, node
    REFUSED = 6  # a safety rule says no; the message names the flag that overrides it
    PARTLY = 7  # some of it was done
    RUNNING = 8  # not finished when the time ran out; it goes on
    CORRUPT = 9  # damage was found
    BUSY = 10  # try again
    NO_SPACE = 11  # not enough disk space
    INTERNAL = 70  # a bug
    CONFIGURATION = 78  # a configuration is wrong
    INTERRUPTED = 130  # ended by Ctrl-C


_WORST_FIRST = (
    AdminExit.INTERNAL,
    AdminExit.CORRUPT,
    AdminExit.NOT_ALLOWED,
    AdminExit.NO_SPACE,
    AdminExit.REFUSED,
    AdminExit.PARTLY,
    AdminExit.UNREACHABLE,
    AdminExit.RUNNING,
    AdminExit.BUSY,
    AdminExit.NO,
)


def worst(codes: Iterable[AdminExit]) -> AdminExit:
    """The code that wins when several apply; `GOOD` when none of the ranked ones does."""
    present = set(codes)
    for code in _WORST_FIRST:
        if code in present:
            return code
    return AdminExit.GOOD
