"""Values on a command line: JSON, text, files, and ``NAME=VALUE``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.failure import MISUSED, CommandError
from penstock.texts import NotJsonError, TextError, decode_text, read_json

if TYPE_CHECKING:
    from penstock.contracts.json import Json


def read_input(text: str, *, option: str = "--input") -> Json:
    """Return a value: JSON if it looks like it, else plain text; ``@file`` and ``@-`` read one.

    Raises:
        CommandError: The file cannot be read, or it looks like JSON and is not.
    """
    if text.startswith("@"):
        name = text[1:]
        try:
            body = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
            text = decode_text(body)
        except OSError as error:
            raise CommandError(f"{name}: {error.strerror}", exit_code=MISUSED) from error
        except TextError as error:
            raise CommandError(f"{name}: {error}", exit_code=MISUSED) from error
    try:
        return read_json(text)
    except NotJsonError as error:
        if text.lstrip()[:1] not in ("{", "["):
            return text
        raise CommandError(f"{option} is not JSON: {error}", exit_code=MISUSED) from error
    except TextError as error:
        raise CommandError(f"{option}: {error}", exit_code=MISUSED) from error


def read_start_input(value: str | None, text: str | None) -> Json:
    """Return the input of a run: of ``--input`` as ``read_input``, of ``--text`` as it is.

    Raises:
        CommandError: Both were given, or the input cannot be read.
    """
    if text is None:
        return read_input("null" if value is None else value)
    if value is not None:
        raise CommandError("give either --input or --text", exit_code=MISUSED)
    return text


def read_pairs(texts: Iterable[str] | None, *, option: str) -> dict[str, str]:
    """Return the values of a repeated option ``NAME=VALUE`` by name.

    Raises:
        CommandError: There is no ``=`` in one of them.
    """
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CommandError(f"{option} takes NAME=VALUE, not {text!r}", exit_code=MISUSED)
        found[name] = value
    return found


def read_values(texts: Iterable[str] | None, *, option: str) -> dict[str, Json]:
    """Return the values of a repeated option ``NAME=JSON`` by name; errors as above."""
    pairs = read_pairs(texts, option=option)
    return {name: read_input(value, option=option) for name, value in pairs.items()}
