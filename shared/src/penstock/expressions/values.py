"""What expressions compute with: the kinds of values, their operators, and what it all may cost.

JSON's numbers are one kind: integers and fractions mix, and a result is an integer only where
both operands are. Every operation whose work grows with its operands pays for it beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from math import fmod, isfinite, trunc
from typing import Any, Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.expressions.tree import TypeName

MAX_WORK: Final = 1_000_000
"""What one evaluation may cost, in parts of the expression visited and elements touched: about
a third of a second."""
MAX_RESULT_BYTES: Final = 4 * 2**20
"""Largest result, as JSON, roughly."""
MAX_RESULT_VALUES: Final = 400_000
"""So many values may be in a result, of whatever size."""
_UNITS_OF_A_COMPARISON: Final = 4
INT_MAX: Final = 2**63 - 1
CHARACTERS_OF_A_UNIT: Final = 16
"""So many characters of text cost as much as one element of a list."""

_KINDS: Final[dict[type, str]] = {
    type(None): "null",
    bool: "bool",
    int: "number",
    float: "number",
    str: "string",
    bytes: "bytes",
    list: "list",
    dict: "map",
    datetime: "timestamp",
    timedelta: "duration",
    TypeName: "type",
}


UNITS_OF_AN_EVALUATION: Final = 10
"""What an evaluation costs at least."""


class Meter:
    """Counts the work of all evaluations while it is the value of ``METER``."""

    __slots__ = ("limit", "spent")

    def __init__(self, limit: int | None = None) -> None:
        self.spent = 0
        """Units so far."""
        self.limit = limit
        """Beyond so many units, evaluations fail."""


METER: Final[ContextVar[Meter | None]] = ContextVar("penstock_work", default=None)


def charge(units: int) -> None:
    """Count the work of an evaluation, or of making text.

    Raises:
        RejectedError: It is more than the limit of the meter.
    """
    meter = METER.get()
    if meter is not None:
        meter.spent += units
        if meter.limit is not None and meter.spent > meter.limit:
            raise failed("it is too much work for the expressions of a step; do it in a tool")


class Evaluation:
    """One evaluation: what it sees, the variables of its macros, and what it may still spend."""

    __slots__ = ("left", "locals", "scope")

    def __init__(self, scope: Mapping[str, JsonValue]) -> None:
        """Begin with a full budget."""
        self.scope = scope
        self.locals: list[Any] = []
        self.left = MAX_WORK

    def spend(self, units: int) -> None:
        """Pay for work.

        Raises:
            RejectedError: It is too much.
        """
        self.left -= units
        if self.left < 0:
            raise failed("it is too much work for an expression; do it in a tool")

    def close(self) -> None:
        """Have the work counted.

        Raises:
            RejectedError: It is more than the limit of the meter.
        """
        charge(MAX_WORK - self.left + UNITS_OF_AN_EVALUATION)

    def spend_text(self, characters: int) -> None:
        """Pay for making or reading text.

        Raises:
            RejectedError: It is too much.
        """
        self.spend(characters // CHARACTERS_OF_A_UNIT + 1)


def failed(reason: str, allowed: str | None = None) -> RejectedError:
    """Return the error of an expression that cannot be evaluated (``expression_failed``)."""
    detail = ErrorDetail(path="", message=reason, allowed=allowed)
    return RejectedError("expression_failed", reason, details=(detail,))


def kind_of(value: object) -> str:
    """Name the kind of a value.

    Raises:
        RejectedError: It is none of JSON's.
    """
    kind = _KINDS.get(type(value))
    if kind is not None:
        return kind
    if isinstance(value, Mapping):
        return "map"
    for known, name in _KINDS.items():
        if isinstance(value, known):
            return name
    raise failed(f"a {type(value).__name__} is no JSON value")


def article(kind: str) -> str:
    """Write a kind into a sentence."""
    return "null" if kind == "null" else f"a {kind}"


def whole(value: Any) -> int:
    """Take a number where only an integer makes sense; ``2.0`` is one.

    Raises:
        RejectedError: It has a fraction.
    """
    if isinstance(value, int):
        return int(checked(value))
    if not value.is_integer():
        raise failed(f"{value} is no integer; use int(...), which cuts off the fraction")
    return int(value)


def checked(value: Any) -> Any:
    """Return a number if it is one that JSON and 64 bits can hold.

    Raises:
        RejectedError: It is too large, or not a number.
    """
    if isinstance(value, float):
        if not isfinite(value):
            raise failed("the result is not a finite number")
    elif not -INT_MAX - 1 <= value <= INT_MAX:
        raise failed("the result does not fit into an integer (64 bits); use double(...)")
    return value


def _divide(left: Any, right: Any) -> Any:
    if right == 0:
        raise failed("division by zero")
    if isinstance(left, int) and isinstance(right, int):
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    return left / right


def _remainder(left: Any, right: Any) -> Any:
    if right == 0:
        raise failed("division by zero")
    if isinstance(left, int) and isinstance(right, int):
        return left - right * _divide(left, right)
    return fmod(left, right)


def _joined(of: Evaluation, left: Any, right: Any) -> Any:
    of.spend_text(len(left) + len(right))
    return left + right


def _appended(of: Evaluation, left: Any, right: Any) -> Any:
    of.spend(len(left) + len(right))
    return left + right


Operation = Callable[[Evaluation, Any, Any], Any]

OPERATIONS: Final[dict[tuple[str, str, str], tuple[str, Operation]]] = {
    ("+", "number", "number"): ("number", lambda _, a, b: checked(a + b)),
    ("-", "number", "number"): ("number", lambda _, a, b: checked(a - b)),
    ("*", "number", "number"): ("number", lambda _, a, b: checked(a * b)),
    ("/", "number", "number"): ("number", lambda _, a, b: checked(_divide(a, b))),
    ("%", "number", "number"): ("number", lambda _, a, b: checked(_remainder(a, b))),
    ("+", "string", "string"): ("string", _joined),
    ("+", "bytes", "bytes"): ("bytes", _joined),
    ("+", "list", "list"): ("list", _appended),
    ("+", "timestamp", "duration"): ("timestamp", lambda _, a, b: a + b),
    ("+", "duration", "timestamp"): ("timestamp", lambda _, a, b: b + a),
    ("+", "duration", "duration"): ("duration", lambda _, a, b: a + b),
    ("-", "timestamp", "timestamp"): ("duration", lambda _, a, b: a - b),
    ("-", "timestamp", "duration"): ("timestamp", lambda _, a, b: a - b),
    ("-", "duration", "duration"): ("duration", lambda _, a, b: a - b),
}
"""What arithmetic there is: operator and kinds of operands, the result's kind, and how."""
for _kind in ("number", "string", "bool", "bytes", "timestamp", "duration"):
    OPERATIONS["<", _kind, _kind] = ("bool", lambda _, a, b: a < b)
    OPERATIONS["<=", _kind, _kind] = ("bool", lambda _, a, b: a <= b)
    OPERATIONS[">", _kind, _kind] = ("bool", lambda _, a, b: a > b)
    OPERATIONS[">=", _kind, _kind] = ("bool", lambda _, a, b: a >= b)


def no_operation(operator: str, left: str, right: str) -> tuple[str, str | None]:
    """Say why two kinds do not go together, and what would."""
    allowed = [f"{a} {operator} {b}" for known, a, b in OPERATIONS if known == operator]
    hint = ""
    if operator == "+" and "string" in (left, right):
        hint = "; use string(...) to make text of a value"
    elif "null" in (left, right):
        hint = "; test for null first: x == null ? 0 : x"
    return f"{article(left)} {operator} {article(right)} is not defined{hint}", ", ".join(allowed)


def operate(of: Evaluation, operator: str, left: Any, right: Any) -> Any:
    """Compute ``left operator right`` for arithmetic and order.

    Raises:
        RejectedError: The operator is not defined for such operands.
    """
    kinds = kind_of(left), kind_of(right)
    found = OPERATIONS.get((operator, *kinds))
    if found is None:
        raise failed(*no_operation(operator, *kinds))
    return found[1](of, left, right)


def equal(of: Evaluation, left: Any, right: Any) -> bool:
    """Compare two values of any kinds; numbers by value, so ``1 == 1.0``.

    Raises:
        RejectedError: The comparison is too much work.
    """
    of.spend(_UNITS_OF_A_COMPARISON)
    kind = kind_of(left)
    if kind != kind_of(right):
        return False
    if kind == "list":
        return len(left) == len(right) and all(
            equal(of, a, b) for a, b in zip(left, right, strict=True)
        )
    if kind == "map":
        return len(left) == len(right) and all(
            key in right and equal(of, value, right[key]) for key, value in left.items()
        )
    if kind in ("string", "bytes"):
        of.spend_text(min(len(left), len(right)))
    return bool(left == right)


def contains(of: Evaluation, items: Any, value: Any) -> bool:
    """Return whether a list has an element, a map a member, or a string a part.

    Raises:
        RejectedError: It is none of these, or too much work.
    """
    match kind_of(items), kind_of(value):
        case "list", _:
            return any(equal(of, item, value) for item in items)
        case "map", "string":
            return value in items
        case "map", kind:
            raise failed(f"the names in a map are strings, and this is {article(kind)}")
        case "string", "string":
            of.spend_text(len(items))
            return value in items
        case kind, other:
            raise failed(f"{article(kind)} cannot contain {article(other)}", "list, map, string")


def seconds_of(value: timedelta) -> int | float:
    """Return a duration in seconds, an integer where it is whole."""
    seconds = value.total_seconds()
    return int(seconds) if seconds.is_integer() else seconds


def text_of(value: datetime) -> str:
    """Return a time as RFC 3339 text in UTC."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def truncated(value: float) -> int:
    """Cut off the fraction.

    Raises:
        RejectedError: It does not fit into an integer.
    """
    return int(checked(trunc(value)))


class Output:
    """The way of a result into JSON, up to ``MAX_RESULT_BYTES``."""

    def __init__(self) -> None:
        """Begin with room for all of it."""
        self._left = MAX_RESULT_BYTES
        self._values = MAX_RESULT_VALUES

    def json(self, value: Any) -> JsonValue:
        """Return a value as JSON: times as RFC 3339 text, durations in seconds.

        Raises:
            RejectedError: It cannot be JSON, or is too large.
        """
        self._take(4)
        self._values -= 1
        if self._values < 0:
            raise failed(f"the result has more than {MAX_RESULT_VALUES} values")
        match kind_of(value):
            case "string":
                self._take(len(value))
            case "number":
                if isinstance(value, float) and not isfinite(value):
                    raise failed("the result is not a finite number")
            case "list":
                return [self.json(item) for item in value]
            case "map":
                return {self._name(key): self.json(item) for key, item in value.items()}
            case "timestamp":
                return text_of(value)
            case "duration":
                return seconds_of(value)
            case "bytes":
                raise failed("bytes are no JSON; string(...) reads them as UTF-8")
            case "type":
                raise failed("a type is no JSON; compare it: type(x) == string")
            case _:
                pass
        return value  # type: ignore[no-any-return]

    def _name(self, name: object) -> str:
        if not isinstance(name, str):
            raise failed(f"the names in a map are strings, and this is {article(kind_of(name))}")
        self._take(len(name))
        return name

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise failed(f"the result is larger than {MAX_RESULT_BYTES} bytes")
