"""References to secrets: what a rendered value holds instead of them, and how they are filled in.

Apart from the templates, because a runner fills secrets in and evaluates no expression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from penstock.contracts.errors import RejectedError

SecretReference = dict[str, str]
"""``{"secret": NAME}``."""

MASK: Final = "[secret]"
"""Replaces each secret in a rendered value until it is filled in."""


def masked(pieces: Sequence[str | SecretReference]) -> str:
    """Return the text with ``[secret]`` for each reference."""
    return "".join(piece if isinstance(piece, str) else MASK for piece in pieces)


def fill_secrets(
    value: JsonValue,
    secrets: Mapping[str, Sequence[str | SecretReference]],
    lookup: Callable[[str], str],
) -> JsonValue:
    """Return a copy of a rendered value with its secrets filled in.

    Args:
        value: ``Rendered.value``.
        secrets: ``Rendered.secrets``, also after a way through JSON.
        lookup: Gives a secret by its name; its errors pass through.

    Raises:
        RejectedError: ``secrets_misplaced``: the value is not the one that was rendered.
    """
    for pointer, pieces in secrets.items():
        parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        value = _filled(value, pointer, parts, pieces, lookup)
    return value


def _filled(
    value: JsonValue,
    pointer: str,
    parts: Sequence[str],
    pieces: Sequence[str | SecretReference],
    lookup: Callable[[str], str],
) -> JsonValue:
    if parts:
        first, *rest = parts
        if isinstance(value, dict) and first in value:
            return {**value, first: _filled(value[first], pointer, rest, pieces, lookup)}
        if isinstance(value, list) and first.isdecimal() and int(first) < len(value):
            copy = list(value)
            copy[int(first)] = _filled(copy[int(first)], pointer, rest, pieces, lookup)
            return copy
    elif value == masked(pieces):
        return "".join(
            piece if isinstance(piece, str) else lookup(piece["secret"]) for piece in pieces
        )
    raise RejectedError(
        "secrets_misplaced",
        f"what stands at {pointer or 'the top'} differs from the rendered value",
    )
