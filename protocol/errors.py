"""Sorts everything that can go wrong by whose fault it is and what helps.

Every class answers four questions: `code` (stable; what a client compares), `scope` (how much
stops), `retry` (may the same request be sent again?) and `hint` (what to do). `CODES` is the one
table of codes that cross the wire; `error_body` and `exception_of` turn an error into the body of
an error answer and back, so node and client cannot disagree.

Invariants:
  * whatever bytes arrive, the decoders raise RemoteProtocolError or nothing;
  * what is not meant for clients (files, bugs) leaves the node as `internal`, without its text;
  * a code, once published, keeps its meaning and its retry class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

Scope = Literal["request", "peer", "actor", "node"]
Retry = Literal["never", "now", "later", "elsewhere"]

RETRIES: tuple[Retry, ...] = ("never", "now", "later", "elsewhere")
RETRY_AFTER_MS_DEFAULT = 1_000
RETRY_AFTER_MS_MAX = 3_600_000
MESSAGE_SIZE_MAX = 1_024

# What became of an event, as numbers inside the node and as words in answers.
STORED, DUPLICATE, CONFLICT, REJECTED, UNKNOWN = range(5)
STATUSES = ("stored", "duplicate", "conflict", "rejected", "unknown")

# Why an event was rejected. The position is the number used in columns; never reorder.
REASONS = (
    "",
    "bad_account",
    "bad_metric",
    "unknown_metric",
    "bad_value",
    "bad_timestamp",
    "bad_id",
    "bad_operation",
    "bad_properties",
    "too_old",
    "too_far_ahead",
)
(
    WELL_FORMED,
    BAD_ACCOUNT,
    BAD_METRIC,
    UNKNOWN_METRIC,
    BAD_VALUE,
    BAD_TIMESTAMP,
    BAD_ID,
    BAD_OPERATION,
    BAD_PROPERTIES,
    TOO_OLD,
    TOO_FAR_AHEAD,
) = range(len(REASONS))


@dataclass(frozen=True, slots=True)
class WireCode:
    """One row of the table of codes: may it be retried, and what helps."""

    retry: Retry
    hint: str


CODES: Mapping[str, WireCode] = {
    # The bytes or the question are wrong: sending them again cannot help.
    "malformed": WireCode("never", "the bytes do not follow docs/PROTOCOL.md; mend the client"),
    "too_large": WireCode("never", "split the request; hello answers the limits"),
    "unsupported_version": WireCode("never", "use a client of the node's protocol version"),
    "unknown_kind": WireCode("never", "docs/PROTOCOL.md lists the kinds"),
    "bad_request": WireCode("never", "mend the field that the message names"),
    "unsupported_aggregation": WireCode("never", "this version does not compute it yet"),
    "unsupported_thresholds": WireCode("never", "register the metric without thresholds"),
    "unknown_metric": WireCode("never", "register it: meterctl metric put"),
    "metric_conflict": WireCode("never", "pass replace to make a new version of the metric"),
    "too_many_metrics": WireCode("never", "use dimensions instead of a metric for each case"),
    "not_found": WireCode("never", "check the name"),
    "change_refused": WireCode("never", "meterctl topology shows the nodes and their states"),
    "exists": WireCode("never", "use another name"),
    "not_needed": WireCode("never", "nothing: there is nothing to do"),
    "range_expired": WireCode("never", "ask for the range that the message names"),
    "import_conflict": WireCode("never", "use another import id, or send what it has brought"),
    "too_many_balances": WireCode("never", "import sums of several accounts' past instead"),
    "too_many_erasures": WireCode("never", "the list of erased accounts is full"),
    "metric_versions_differ": WireCode(
        "never", "ask for both sides of the moment the message names"
    ),
    # The node cannot now: the same request, with the same event ids, is safe to send again.
    "overloaded": WireCode("later", "send less at once, or add a node"),
    "busy": WireCode("later", "wait for what runs: meterctl jobs list"),
    "memory_full": WireCode("later", "delete metrics or groups that nobody asks for, or add nodes"),
    "disk_stop": WireCode("later", "free disk space; meterctl disk status shows how much"),
    "store_failed": WireCode("later", "check the target: address, credentials, space, rights"),
    "starting": WireCode("later", "the node is replaying its log"),
    "internal": WireCode("later", "a bug or a broken disk; the node's log names it"),
    "restarting": WireCode("now", "a part of the node was restarted; send again, same ids"),
    "deadline_exceeded": WireCode("now", "it may still happen; send again with the same ids"),
    "shutting_down": WireCode("elsewhere", "use another node, or wait until this one is back"),
    "not_leader": WireCode("elsewhere", "fetch the partition map and ask the leader"),
}


class MeterdError(Exception):
    """The root of all errors that meterd raises on purpose."""

    code: ClassVar[str] = "internal"
    scope: ClassVar[Scope] = "request"
    retry: Retry = "never"
    hint: str = ""

    def __init_subclass__(cls) -> None:
        """Take retry and hint of a wire code from the table, so there is one place for them."""
        super().__init_subclass__()
        row = CODES.get(cls.code)
        if row is not None:
            cls.retry, cls.hint = row.retry, row.hint

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConfigError(MeterdError):
    """A setting is unknown or wrong; the message names key, value and origin."""

    code = "config"
    scope = "node"
    hint = "meterd check-config"
    exit_code: ClassVar[int] = 78


class BootFailed(MeterdError):
    """The node must not start, and starting again would not help; ends with `exit_code`."""

    code = "boot_failed"
    scope = "node"
    hint = "the reason names what to mend"

    def __init__(self, exit_code: int, reason: str) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[int, str]]:
        return type(self), (self.exit_code, self.reason)


class Unreachable(MeterdError):
    """No node answered: raised by clients, never sent."""

    code = "unreachable"
    retry = "later"
    hint = "check the addresses and that a node is running"


class InvariantViolation(AssertionError):
    """The program contradicts itself: end the process, keep the story."""

    code: ClassVar[str] = "internal"
    scope: ClassVar[Scope] = "node"
    retry: ClassVar[Retry] = "never"
    hint: ClassVar[str] = "a bug; report it with the node's log"


class ProtocolError(MeterdError):
    """Somebody broke the protocol: raise one of the two below, which say who."""


class LocalProtocolError(ProtocolError):
    """We were about to send something that the protocol does not allow: our bug."""

    scope = "actor"
    retry = "never"


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow: answer the code, or drop it.

    `request_id` is the id of the request when so much could be read, so it can be answered.
    """

    scope = "peer"

    def __init__(self, code: str, message: str, request_id: int | None = None) -> None:
        super().__init__(message)
        row = CODES[code]
        self.code = code  # type: ignore[misc]  # one class, several codes
        self.retry, self.hint = row.retry, row.hint
        self.request_id = request_id

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, int | None]]:
        return type(self), (self.code, self.message, self.request_id)


class Rejected(MeterdError):
    """The node understood and declines; expected, and sent to the client."""

    def __init__(self, message: str = "", retry_after_ms: int | None = None) -> None:
        super().__init__(message or self.hint)
        if retry_after_ms is None and self.retry == "later":
            retry_after_ms = RETRY_AFTER_MS_DEFAULT
        self.retry_after_ms = retry_after_ms


class Refused(Rejected):
    """An error answer whose code has no class of its own, as when the node is newer."""

    def __init__(self, code: str, message: str, retry: Retry, hint: str) -> None:
        self.retry, self.hint = retry, hint
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # one class, several codes

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, Retry, str]]:
        return type(self), (self.code, self.message, self.retry, self.hint)


class BadRequest(Rejected):
    """A field of the question is wrong; the message names it."""

    code = "bad_request"


class UnsupportedAggregation(Rejected):
    """A known aggregation that this version does not compute."""

    code = "unsupported_aggregation"


class UnsupportedThresholds(Rejected):
    """Thresholds on a metric, which this version does not watch."""

    code = "unsupported_thresholds"


class UnknownMetric(Rejected):
    """No metric is registered under this code."""

    code = "unknown_metric"


class MetricConflict(Rejected):
    """Another definition is registered under this code."""

    code = "metric_conflict"


class TooManyMetrics(Rejected):
    """The registry is full."""

    code = "too_many_metrics"


class NotFound(Rejected):
    """What was asked for does not exist."""

    code = "not_found"


class Exists(Rejected):
    """Something has this name already, and is never replaced."""

    code = "exists"


class ChangeRefused(Rejected):
    """A change of nodes, or of what they are to have, breaks a rule of the cluster."""

    code = "change_refused"


class NotNeeded(Rejected):
    """What was asked for is as it should be already, or cannot be done now."""

    code = "not_needed"


class RangeExpired(Rejected):
    """The range can no longer be answered exactly; the message names the nearest that can."""

    code = "range_expired"


class ImportConflict(Rejected):
    """An import of this id has brought other balances."""

    code = "import_conflict"


class TooManyBalances(Rejected):
    """The table of opening balances is full."""

    code = "too_many_balances"


class TooManyErasures(Rejected):
    """The list of erased accounts is full."""

    code = "too_many_erasures"


class MetricVersionsDiffer(Rejected):
    """Events of the range were counted by versions of the metric that do not add up."""

    code = "metric_versions_differ"


class VersionMismatch(Rejected):
    """The other side speaks another protocol version."""

    code = "unsupported_version"


class Overloaded(Rejected):
    """More requests wait than the node admits."""

    code = "overloaded"


class Busy(Rejected):
    """Something that must not run twice at once is running, or too much waits for it."""

    code = "busy"


class DiskStop(Rejected):
    """Too little disk space is left to take events; questions are still answered."""

    code = "disk_stop"
    scope = "node"


class StoreFailed(Rejected):
    """A directory or bucket for copies does not work; the message says how."""

    code = "store_failed"


class Starting(Rejected):
    """The node replays its log and cannot answer yet."""

    code = "starting"
    scope = "node"


class Internal(Rejected):
    """Something broke inside the node; what, its log says."""

    code = "internal"


class Restarting(Rejected):
    """A part of the node died and was started again; what was in flight is undecided."""

    code = "restarting"


class DeadlineExceeded(Rejected):
    """The time the client was willing to wait is over; what it asked may still happen."""

    code = "deadline_exceeded"


class ShuttingDown(Rejected):
    """The node stops and takes nothing new."""

    code = "shutting_down"
    scope = "node"


class NotLeader(Rejected):
    """Another node leads the account's partition."""

    code = "not_leader"


class StorageError(MeterdError):
    """Something about files; never sent to clients as such."""

    code = "storage"
    scope = "node"


class Corrupt(StorageError):
    """Bytes on disk are not those that were written; never truncated, never skipped."""

    code = "corrupt"
    retry = "elsewhere"
    hint = "restore the file from a replica or a backup"

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path} at offset {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, str]]:
        return type(self), (self.path, self.offset, self.reason)


class DiskFull(StorageError):
    """The file system has no space left; `disk_stop` should have come before."""

    code = "disk_full"
    retry = "later"
    hint = "free disk space"


class FsyncFailed(StorageError):
    """The kernel may have dropped what it could not write: the process must end and read again."""

    code = "fsync_failed"
    hint = "check the disk, then start the node again"


CLASS_OF_CODE: Mapping[str, type[Rejected]] = {
    cls.code: cls for cls in Rejected.__subclasses__() if cls is not Refused
}


def error_body(error: BaseException) -> dict[str, object]:
    """Return the body of the error answer for this error."""
    if not isinstance(error, RemoteProtocolError | Rejected):
        error = Internal()
    body: dict[str, object] = {
        "code": error.code,
        "message": error.message[:MESSAGE_SIZE_MAX],
        "retry": error.retry,
        "hint": error.hint,
    }
    if error.retry == "later" and isinstance(error, Rejected):
        body["retry_after_ms"] = error.retry_after_ms
    return body


def exception_of(body: object) -> MeterdError:
    """Return the error that an error answer stands for, also when the node is newer than we."""
    if not isinstance(body, dict):
        return RemoteProtocolError("malformed", "the body of an error answer is not a map")
    code, retry = body.get("code"), body.get("retry")
    message, hint = body.get("message", ""), body.get("hint", "")
    after = body.get("retry_after_ms")
    if not (isinstance(code, str) and isinstance(message, str) and isinstance(hint, str)):
        return RemoteProtocolError("malformed", "an error answer without code, message or hint")
    if retry not in RETRIES:
        return RemoteProtocolError("malformed", f"an error answer with retry {retry!r:.40}")
    cls = CLASS_OF_CODE.get(code)
    error = cls(message) if cls is not None else Refused(code, message, retry, hint)
    if retry == "later" and type(after) is int and 0 <= after <= RETRY_AFTER_MS_MAX:
        error.retry_after_ms = after
    return error
