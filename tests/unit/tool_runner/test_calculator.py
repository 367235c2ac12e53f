"""Arithmetic, and its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.contracts.errors import RejectedError
from penstock_tool_runner.core import calculator
from penstock_tool_runner.core.calculator import MAX_BITS

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("operation", "a", "b", "expected"),
    [
        ("add", 2, 3, 5),
        ("add", 0.5, 1, 1.5),
        ("subtract", 2, 3, -1),
        ("multiply", 10**30, 10**30, 10**60),
        ("divide", 6, 3, 2),
        ("divide", 1, 4, 0.25),
        ("power", 2, 10, 1024),
        ("power", 2, -1, 0.5),
        ("power", 9, 0.5, 3.0),
        ("power", -2, 3, -8),
        ("power", -2.0, 3.0, -8.0),
        ("power", 0, 0, 1),
        ("power", 1, 10**300, 1),
        ("power", -1, 10**300 + 1, -1),
    ],
)
def test_operation_is_exact(operation: str, a: float, b: float, expected: float) -> None:
    result = getattr(calculator, operation)(a, b)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("operation", "a", "b", "code"),
    [
        ("divide", 1, 0, "division_by_zero"),
        ("divide", 1, 0.0, "division_by_zero"),
        ("power", 0, -1, "division_by_zero"),
        ("power", -2, 0.5, "not_real"),
        ("power", 10, 10**9, "result_too_large"),
        ("power", 2, MAX_BITS, "result_too_large"),
        ("power", 10.0, 400, "result_too_large"),
        ("power", 10, 400.5, "result_too_large"),
        ("multiply", 2**4000, 2**4000, "result_too_large"),
        ("add", 1e308, 1e308, "result_too_large"),
        ("add", 2**5000, 1, "result_too_large"),
        ("add", 2**2000, 0.5, "result_too_large"),
    ],
)
def test_operation_without_a_useful_result_is_rejected(
    operation: str, a: float, b: float, code: str
) -> None:
    with pytest.raises(RejectedError) as caught:
        getattr(calculator, operation)(a, b)
    assert caught.value.code == code


@given(st.sampled_from(["add", "subtract", "multiply", "divide", "power"]), NUMBERS, NUMBERS)
def test_any_numbers_give_a_bounded_number_or_a_rejection(
    operation: str, a: float, b: float
) -> None:
    try:
        result = getattr(calculator, operation)(a, b)
    except RejectedError:
        result = 0
    assert isinstance(result, int | float)
    assert not isinstance(result, int) or result.bit_length() <= MAX_BITS
