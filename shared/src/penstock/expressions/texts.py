"""Texts: functions of expressions on strings."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from penstock.expressions import conversions
from penstock.expressions.overloads import Table, overloads
from penstock.expressions.patterns import matches
from penstock.expressions.tree import TypeName
from penstock.expressions.values import Evaluation, article, contains, failed, kind_of, whole

MAX_DECIMALS: Final = 100
"""Most digits after the point that ``format`` writes."""


def _paid(act: Callable[..., Any]) -> Callable[..., Any]:
    def paying(of: Evaluation, text: str, *rest: Any) -> Any:
        of.spend_text(len(text))
        return act(text, *rest)

    return paying


_UPPER: Final = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}
_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _split(of: Evaluation, text: str, separator: str, limit: Any = -1) -> list[str]:
    of.spend(len(text) + 1)
    most = whole(limit)
    if most == 0:
        return []
    if separator:
        return text.split(separator, most - 1 if most > 0 else -1)
    if 0 < most < len(text):
        return [*text[: most - 1], text[most - 1 :]]
    return list(text)


def _join(of: Evaluation, items: list[Any], separator: str = "") -> str:
    of.spend(len(items))
    for item in items:
        if not isinstance(item, str):
            kind = kind_of(item)
            raise failed(
                f"join() takes strings, and there is {article(kind)}; use .map(x, string(x))"
            )
    of.spend_text(sum(map(len, items)) + len(separator) * len(items))
    return separator.join(items)


def _replace(of: Evaluation, text: str, old: str, new: str, limit: Any = -1) -> str:
    most = whole(limit)
    of.spend_text(len(text))
    count = text.count(old)
    of.spend_text((count if most < 0 else min(count, most)) * len(new))
    return text.replace(old, new, most)


def _place(name: str, text: str, place: Any) -> int:
    """Return a place in a text, its end included.

    Raises:
        RejectedError: It lies outside.
    """
    index = whole(place)
    if not 0 <= index <= len(text):
        raise failed(f"{name}() at {index} of a text of {len(text)} characters")
    return index


def _index_of(of: Evaluation, text: str, part: str, start: Any = 0) -> int:
    of.spend_text(len(text))
    return text.find(part, _place("indexOf", text, start))


def _last_index_of(of: Evaluation, text: str, part: str, start: Any = None) -> int:
    of.spend_text(len(text))
    last = len(text) if start is None else _place("lastIndexOf", text, start)
    return text.rfind(part, 0, last + len(part))


def _char_at(_: Evaluation, text: str, place: Any) -> str:
    index = _place("charAt", text, place)
    return text[index : index + 1]


def _substring(of: Evaluation, text: str, start: Any, end: Any = None) -> str:
    of.spend_text(len(text))
    first, last = whole(start), len(text) if end is None else whole(end)
    if not 0 <= first <= last <= len(text):
        raise failed(f"substring({first}, {last}) of a text of {len(text)} characters")
    return text[first:last]


# format


_CLAUSE: Final = re.compile(r"%(?:%|(?:\.([0-9]{1,3}))?([sdfebxXo]))|%")


def _format(of: Evaluation, text: str, values: list[Any]) -> str:
    of.spend_text(len(text))
    waiting = iter(values)

    def written(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        clause, decimals = found[2], int(found[1] or 6)
        if clause is None or (found[1] is not None and clause not in "fe"):
            shown = text[found.start() : found.start() + 5]
            raise failed(f"format() has no {shown!r}", "%s, %d, %f, %.2f, %e, %b, %o, %x, %X, %%")
        if decimals > MAX_DECIMALS:
            raise failed(f"format() writes at most {MAX_DECIMALS} digits after the point")
        for value in waiting:
            result = _written(of, clause, decimals, value)
            of.spend_text(len(result))
            return result
        raise failed(f"format() has {len(values)} values, and the text takes more")

    return _CLAUSE.sub(written, text)


def _written(of: Evaluation, clause: str, decimals: int, value: Any) -> str:
    """Return a value as a clause writes it.

    Raises:
        RejectedError: The clause does not take it.
    """
    if clause == "s":
        return _shown(of, value)
    kind = kind_of(value)
    if clause in "xX" and kind in ("string", "bytes"):
        body = conversions.encoded(of, value) if kind == "string" else value
        of.spend_text(2 * len(body))
        return body.hex() if clause == "x" else body.hex().upper()
    if kind != "number" and not (clause == "b" and kind == "bool"):
        raise failed(f"%{clause} does not take {article(kind)}")
    if clause in "fe":
        return f"{value:.{decimals}{clause}}"
    return f"{whole(value):{clause}}"


def _shown(of: Evaluation, value: Any) -> str:
    of.spend(1)
    match value:
        case str():
            of.spend_text(len(value))
            return value
        case None:
            return "null"
        case bool() | int() | float() | datetime() | timedelta():
            return conversions.text(of, value)
        case bytes():
            return conversions.decoded(of, value)
        case TypeName(name):
            return name
        case list():
            text = f"[{', '.join(_shown(of, item) for item in value)}]"
        case _:
            members = sorted((_shown(of, name), _shown(of, item)) for name, item in value.items())
            text = f"{{{', '.join(f'{name}: {item}' for name, item in members)}}}"
    of.spend_text(len(text))
    return text


TEXTS: Final[Table] = {
    "startsWith": overloads(("string string", "bool", _paid(str.startswith))),
    "endsWith": overloads(("string string", "bool", _paid(str.endswith))),
    "matches": overloads(("string string", "bool", matches)),
    "contains": overloads(("string string", "bool", contains), ("list any", "bool", contains)),
    "lowerAscii": overloads(("string", "string", _paid(lambda text: text.translate(_LOWER)))),
    "upperAscii": overloads(("string", "string", _paid(lambda text: text.translate(_UPPER)))),
    "trim": overloads(("string", "string", _paid(str.strip))),
    "split": overloads(("string string", "list", _split), ("string string number", "list", _split)),
    "join": overloads(("list", "string", _join), ("list string", "string", _join)),
    "replace": overloads(
        ("string string string", "string", _replace),
        ("string string string number", "string", _replace),
    ),
    "indexOf": overloads(
        ("string string", "number", _index_of), ("string string number", "number", _index_of)
    ),
    "lastIndexOf": overloads(
        ("string string", "number", _last_index_of),
        ("string string number", "number", _last_index_of),
    ),
    "charAt": overloads(("string number", "string", _char_at)),
    "substring": overloads(
        ("string number", "string", _substring), ("string number number", "string", _substring)
    ),
    "format": overloads(("string list", "string", _format)),
}
