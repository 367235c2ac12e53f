"""Arithmetic that ends: results too large to be of use are refused before they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from penstock.contracts.errors import RejectedError

Number = int | float

MAX_BITS: Final = 4096
"""Largest whole number, about 1,233 digits: exact results stay exact, none can take long."""


def add(a: Number, b: Number) -> Number:
    """Return ``a + b``.

    Raises:
        RejectedError: ``result_too_large``.
    """
    return _checked(lambda: _bounded(a) + _bounded(b))


def subtract(a: Number, b: Number) -> Number:
    """Return ``a - b``.

    Raises:
        RejectedError: ``result_too_large``.
    """
    return _checked(lambda: _bounded(a) - _bounded(b))


def multiply(a: Number, b: Number) -> Number:
    """Return ``a * b``.

    Raises:
        RejectedError: ``result_too_large``.
    """
    return _checked(lambda: _bounded(a) * _bounded(b))


def divide(a: Number, b: Number) -> Number:
    """Return ``a / b``, as a whole number where that is exact.

    Raises:
        RejectedError: ``division_by_zero`` or ``result_too_large``.
    """
    if b == 0:
        raise RejectedError("division_by_zero", "cannot divide by zero")
    if isinstance(a, int) and isinstance(b, int) and _bounded(a) % _bounded(b) == 0:
        return a // b
    return _checked(lambda: _bounded(a) / _bounded(b))


def power(a: Number, b: Number) -> Number:
    """Return ``a ** b``.

    Raises:
        RejectedError: ``division_by_zero``, ``not_real`` or ``result_too_large``.
    """
    if a == 0 and b < 0:
        raise RejectedError("division_by_zero", "zero cannot be raised to a negative power")
    if a < 0 and isinstance(b, float) and not b.is_integer():
        raise RejectedError("not_real", "the power of a negative number would not be real")
    whole = isinstance(a, int) and isinstance(b, int) and b > 0
    if whole and abs(a) > 1 and (int(a).bit_length() - 1) * b > MAX_BITS:
        raise _too_large()

    def compute() -> Number:
        result: Number = _bounded(a) ** _bounded(b)
        return result

    return _checked(compute)


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _too_large()
    return value


def _checked(compute: Callable[[], Number]) -> Number:
    try:
        result = _bounded(compute())
    except OverflowError as error:
        raise _too_large() from error
    if isinstance(result, float) and not math.isfinite(result):
        raise _too_large()
    return result


def _too_large() -> RejectedError:
    return RejectedError("result_too_large", f"numbers here have at most {MAX_BITS} bits")
