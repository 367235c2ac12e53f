"""Error families: classes say what to do, and errors travel as data."""

from __future__ import annotations

import pytest

from penstock.contracts.errors import (
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
