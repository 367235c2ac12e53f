"""Error families: classes say what to do, and errors travel as data."""

from __future__ import annotations

import pytest

from penstock.contracts.errors import (
    MAX_CODE_CHARACTERS,
    MAX_DETAILS_CHARACTERS,
    MAX_MESSAGE_CHARACTERS,
    ConflictError,
    ErrorDetail,
    ErrorFamily,
    ErrorInfo,
    InvariantError,
    PenstockError,
    RejectedError,
    TransientError,
    error_from,
)
from penstock.contracts.structs import decode, encode

FAMILIES = [RejectedError, TransientError, ConflictError, InvariantError]


@pytest.mark.parametrize("family", FAMILIES)
def test_error_travels_as_data_and_comes_back_as_its_class(family: type[PenstockError]) -> None:
    error = family(
        "busy",
        "Try later.",
        details=(ErrorDetail(path="a", message="b", allowed="c"),),
        retry_after_seconds=2.5,
    )

    back = error_from(decode(ErrorInfo, encode(error.info())))

    assert type(back) is family
    assert back.info() == error.info()
    assert str(back) == "busy: Try later."


def test_every_family_has_one_class() -> None:
    assert {cls.family for cls in FAMILIES} == set(ErrorFamily)


def test_error_info_of_an_unknown_cause_is_not_retried() -> None:
    assert ErrorInfo(code="x", message="y").family is ErrorFamily.REJECTED


def test_text_of_an_error_is_bounded_whoever_wrote_it() -> None:
    detail = ErrorDetail(path="a", message="m" * 999)
    body = encode(ErrorInfo(code="x", message="m"))
    written = body.replace(b'"x"', b'"%s"' % (b"c" * 3_000)).replace(
        b'"m"', b'"%s"' % (b"m" * 500_000)
    )

    found = decode(ErrorInfo, written)

    assert (len(found.code), len(found.message)) == (MAX_CODE_CHARACTERS, MAX_MESSAGE_CHARACTERS)
    assert found.message.endswith("m...")
    assert decode(ErrorInfo, encode(found)) == found
    many = ErrorInfo(code="x", message="a\0b", details=(detail,) * 2_000)
    assert (many.message, len(many.details)) == ("a\ufffdb", MAX_DETAILS_CHARACTERS // 1_000)
