from __future__ import annotations

import pytest

from penstock.contracts.errors import RejectedError
from penstock.runs.events import EventType
from penstock_gateway.core.preferences import (
    cursor,
    event_place,
    event_types,
    idempotency_key,
    step_window,
    wait_seconds,
    wants_events,
    wants_representation,
)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (b"wait=5", 5),
        (b"respond-async, wait=5", 5),
        (b"respond-async;foo=bar, Wait = 7", 7),
        (b'wait="8"', 8),
        (b"wait=9999", 60),
        (b"wait=0", 0),
        (b"await=5", None),
        (b"wait=soon", None),
        (b"", None),
        (None, None),
    ],
)
def test_wait_is_read_and_limited(prefer: bytes | None, seconds: float | None) -> None:
    assert wait_seconds(prefer, 60) == seconds


@pytest.mark.parametrize(
    ("prefer", "whole"),
    [
        (b"wait=5, return=representation", True),
        (b'Return = "representation";wait=5', True),
        (b"return=minimal, wait=5", False),
        (b"noreturn=representation", False),
        (None, False),
    ],
)
def test_return_of_the_representation_is_read(prefer: bytes | None, whole: bool) -> None:
    assert wants_representation(prefer) is whole


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (b"text/event-stream", True),
        (b"text/event-stream, */*", True),
        (b"text/event-stream;q=0.9, application/json;q=0.1", True),
        (b"application/json, text/event-stream", False),
        (b"text/html, text/event-stream", True),
        (b"application/json;q=0.5, text/event-stream", True),
        (b"text/event-stream;q=0.5, application/json", False),
        (b"text/event-stream; q=0.50, application/json; Q=0.5", True),
        (b"text/event-stream;q=0", False),
        (b"text/event-stream;q=0, */*", False),
        (b"Text/Event-Stream;charset=utf-8;q=1", True),
        (b"text/event-stream;charset=utf-8;q=1.000, application/json;q=0.999", True),
        (b"text/event-stream;q=nan", True),
        (b"application/problem+json, text/event-stream", True),
        (b"*/*", False),
        (None, False),
    ],
)
def test_event_stream_is_sent_to_those_who_ask_for_it_first(
    accept: bytes | None, wanted: bool
) -> None:
    assert wants_events(accept) is wanted


def test_cursor_of_the_header_wins() -> None:
    assert cursor("7", "3") == 7
    assert cursor(None, "3") == 3
    assert cursor("", None) == 0
    for bad in ("x", "-1", "1.5", "9" * 30, "٣"):
        with pytest.raises(RejectedError):
            cursor(bad, None)


def test_place_between_the_events_of_a_fact_is_read() -> None:
    assert event_place(None, "7.2") == (7, 2)
    assert event_place(None, "7") == event_place("7", "9.1") == (7, 0)
    for bad in ("7.", "7.x", "7.-1", "7.1.1", "x.1", "7.99999"):
        with pytest.raises(RejectedError):
            event_place(None, bad)


def test_event_types_are_checked() -> None:
    assert event_types("run_done, user_input") == frozenset(
        {EventType.RUN_DONE, EventType.USER_INPUT}
    )
    assert event_types(None) is None
    with pytest.raises(RejectedError) as caught:
        event_types("run_done,nonsense")
    assert caught.value.details[0].allowed is not None
    assert "run_failed" in caught.value.details[0].allowed


@pytest.mark.parametrize("value", [b"", b" ", b"x" * 256, b"a\tb", "ä".encode()])
def test_idempotency_key_of_bad_form_is_refused(value: bytes) -> None:
    with pytest.raises(RejectedError) as caught:
        idempotency_key(value)
    assert caught.value.code == "invalid_idempotency_key"


def test_idempotency_key_loses_its_quotes() -> None:
    assert idempotency_key(b'"abc"') == idempotency_key(b" abc ") == "abc"
    assert idempotency_key(None) is None


def test_window_of_steps_is_read_from_limit_and_cursor() -> None:
    assert step_window(None, None) == (250, None)
    assert step_window("7", "12.price-x3") == (7, (12, "price-x3"))


@pytest.mark.parametrize(
    "limit", ["0", "1001", "-1", "x", "٣", "9" * 30, "000000001000000", "9" * 5000]
)
def test_window_with_a_limit_out_of_range_is_refused(limit: str) -> None:
    with pytest.raises(RejectedError) as refused:
        step_window(limit, None)
    assert refused.value.details[0].path == "steps_limit"


@pytest.mark.parametrize("cursor", ["x", "1", "1.", ".a", "-1.a", "1.a b", "9999999999.a", "1.٣"])
def test_window_with_a_cursor_of_something_else_is_refused(cursor: str) -> None:
    with pytest.raises(RejectedError) as refused:
        step_window(None, cursor)
    assert refused.value.code == "invalid_cursor"
