"""Masks: no secret survives, however it is written or cut into pieces."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.contracts.errors import ErrorDetail, ErrorFamily, ErrorInfo
from penstock.contracts.structs import encode
from penstock.masks import Mask, MaskedStream

SECRET = 'pä"ss/w ö\n&rd'


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        repr(SECRET),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_mask_hides_a_value_in_all_its_forms(written: str) -> None:
    shown = Mask([SECRET]).text(f"before {written} after")

    assert "rd" not in shown.replace("before", "")
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "[secret]" in shown


def test_mask_hides_a_value_in_json_keys_and_numbers_too() -> None:
    value: Any = {"k4711": [4711, 3, "x4711y", None, True], "plain": {"a": 1.5}}

    assert Mask(["4711"]).value(value) == {
        "k[secret]": ["[secret]", 3, "x[secret]y", None, True],
        "plain": {"a": 1.5},
    }


def test_mask_hides_a_value_in_every_text_of_a_failure() -> None:
    detail = ErrorDetail(path="a.tok", message="got tok", allowed="not tok")
    error = ErrorInfo(code="tok", message="tok?", family=ErrorFamily.TRANSIENT, details=(detail,))

    masked = Mask(["tok"]).info(error)

    assert "tok" not in encode(masked).decode()
    assert masked.family is ErrorFamily.TRANSIENT


def test_mask_without_values_changes_nothing() -> None:
    assert Mask(["", ""]).text("[] any text") == "[] any text"


def test_stream_hides_the_longer_of_two_values_that_begin_alike() -> None:
    stream = MaskedStream(Mask(["abc", "abcdef"]))

    shown = [stream.take(piece) for piece in ("x ab", "c", "de", "f y")]

    assert "".join([*shown, stream.end()]) == "x [secret] y"


def test_stream_holds_back_no_more_than_may_be_the_beginning_of_a_value() -> None:
    stream = MaskedStream(Mask(["secret"]))

    assert stream.take("open se") == "open "
    assert stream.take("ntence") == "sentence"
    assert stream.take(" sec") == " "
    assert stream.end() == "sec"


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.text("abc ", max_size=6), max_size=12),
)
def test_stream_shows_what_the_whole_text_would_and_no_value(
    values: list[str], pieces: list[str]
) -> None:
    mask = Mask(values)
    stream = MaskedStream(mask)
    shown = "".join([*(stream.take(piece) for piece in pieces), stream.end()])

    left = shown.replace("[secret]", "\0")
    assert not any(value in left for value in values)
