"""Errors cross the wire and processes without losing what a client decides by."""

import pickle

import pytest

from meterd.protocol import errors
from meterd.protocol.errors import (
    CLASS_OF_CODE,
    CODES,
    Corrupt,
    DiskFull,
    DiskStop,
    MeterdError,
    Overloaded,
    Refused,
    RemoteProtocolError,
    Restarting,
    error_body,
    exception_of,
)


@pytest.mark.parametrize("cls", CLASS_OF_CODE.values(), ids=lambda cls: cls.__name__)
def test_an_error_comes_out_of_its_answer_as_it_went_in(cls):
    error = exception_of(error_body(cls("the message")))
    assert type(error) is cls
    assert error.message == "the message"
    assert (error.code, error.retry, error.hint) == (cls.code, CODES[cls.code].retry, cls.hint)
    assert (error.retry_after_ms is not None) == (error.retry == "later")


def test_the_time_to_wait_crosses_with_the_error():
    body = error_body(Overloaded(retry_after_ms=250))
    assert body["retry_after_ms"] == 250
    assert exception_of(body).retry_after_ms == 250
    assert "retry_after_ms" not in error_body(Restarting())


@pytest.mark.parametrize("wait", [-1, True, "1", 10**12, None])
def test_a_senseless_time_to_wait_becomes_the_default(wait):
    body = error_body(DiskStop()) | {"retry_after_ms": wait}
    assert exception_of(body).retry_after_ms == errors.RETRY_AFTER_MS_DEFAULT


def test_only_an_error_that_says_later_has_a_time_to_wait():
    body = error_body(Restarting()) | {"retry_after_ms": 5}
    assert exception_of(body).retry_after_ms is None


def test_what_broke_inside_is_answered_without_its_text():
    for error in (Corrupt("/var/lib/secret", 7, "crc"), DiskFull("x"), KeyError("y")):
        body = error_body(error)
        assert body["code"] == "internal"
        assert body["message"] == CODES["internal"].hint


@pytest.mark.parametrize("code", sorted(set(CODES) - set(CLASS_OF_CODE)))
def test_protocol_errors_reach_the_client_with_their_code(code):
    error = exception_of(error_body(RemoteProtocolError(code, "why")))
    assert type(error) is Refused
    assert (error.code, error.message, error.retry) == (code, "why", CODES[code].retry)


def test_a_code_of_a_newer_node_keeps_what_the_answer_says():
    body = {"code": "new_thing", "message": "m", "retry": "elsewhere", "hint": "h"}
    error = exception_of(body)
    assert (error.code, error.message, error.retry, error.hint) == (
        "new_thing",
        "m",
        "elsewhere",
        "h",
    )


@pytest.mark.parametrize(
    "body", [None, [], {}, {"code": 5}, {"code": "x", "retry": "soon"}, {"code": "x", "retry": []}]
)
def test_a_broken_error_answer_is_a_protocol_error(body):
    assert exception_of(body).code == "malformed"


@pytest.mark.parametrize(
    "error",
    [
        Corrupt("path", 7, "crc"),
        errors.BootFailed(65, "reason"),
        RemoteProtocolError("malformed", "why", 3),
        Refused("new", "why", "now", "hint"),
        Overloaded("busy", 5),
    ],
)
def test_errors_survive_pickling_between_processes(error):
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert vars(copied) == vars(error)
    assert str(copied) == str(error)


def test_every_class_answers_the_four_questions():
    def below(cls):
        return [cls, *(deeper for sub in cls.__subclasses__() for deeper in below(sub))]

    for cls in below(MeterdError):
        assert cls.__doc__
        assert cls.retry in errors.RETRIES
        assert cls.scope in ("request", "peer", "actor", "node")
        if cls.code in CODES:
            assert (cls.retry, cls.hint) in [
                (CODES[cls.code].retry, CODES[cls.code].hint),
                (MeterdError.retry, MeterdError.hint),
            ]


def test_reason_numbers_are_fixed():
    assert errors.REASONS[errors.TOO_FAR_AHEAD] == "too_far_ahead"
    assert [errors.REASONS.index(reason) for reason in errors.REASONS] == list(range(11))
    assert errors.STATUSES[errors.UNKNOWN] == "unknown"
