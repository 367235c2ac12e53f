"""Texts that people write: bytes in UTF-8, and JSON as RFC 8259 has it.

JSON is read strictly: a key that an object has twice, a number that is not finite and half a
surrogate are refused, each with its place.
"""

from __future__ import annotations

import codecs
from typing import Final

import jiter

from penstock.contracts.envelope import EnvelopeError, search
from penstock.contracts.json import Json

_READER_DEPTH: Final = 200
"""jiter refuses deeper JSON itself."""
_OTHER_ENCODINGS: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class TextError(ValueError):
    """A text that cannot be read; the message names the place."""


class NotJsonError(TextError):
    """A text that is no JSON at all, or has a key twice."""


def decode_text(body: bytes) -> str:
    """Return a text in UTF-8, without its byte order mark.

    Raises:
        TextError: It is in another encoding.
    """
    try:
        return body.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        for mark, encoding in _OTHER_ENCODINGS.items():
            if body.startswith(mark):
                raise TextError(f"not UTF-8 but {encoding}") from error
        line, column = place_at(body, error.start)
        message = f"not UTF-8: byte 0x{body[error.start]:02x} at line {line} column {column}"
        raise TextError(message) from error


def place_at(body: bytes, offset: int) -> tuple[int, int]:
    """Return line and column of a byte, both from 1."""
    before = body[:offset]
    column = len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
    return before.count(b"\n") + 1, column


def read_json(text: str | bytes) -> Json:
    """Read JSON.

    Raises:
        NotJsonError: It is not JSON, or an object has a key twice.
        TextError: It cannot be written in UTF-8, or a number has no finite value.
    """
    try:
        body = (decode_text(text) if isinstance(text, bytes) else text).encode()
        value: Json = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except UnicodeEncodeError as error:
        message = f"character {error.start + 1} is half a surrogate pair"
        raise TextError(message) from error
    except TextError:
        raise
    except ValueError as error:
        raise NotJsonError(str(error)) from error
    try:
        search(value, _READER_DEPTH)
    except EnvelopeError as error:
        place, message, allowed = error.finding.path, error.finding.message, error.finding.allowed
        raise TextError(f"{place or 'the value'} {message} (allowed: {allowed})") from error
    return value


def documents_of(name: str, body: bytes) -> list[Json]:
    """Return what a file holds, as ``apply`` takes it: JSON documents, or one text in YAML.

    Args:
        name: Its name; one that ends in ``.json`` holds a document or an array of them.
        body: Its content. A JSON object is read as JSON under any name, since YAML does not know
            the pairs of escapes in which JSON may write a character.

    Raises:
        TextError: It is not UTF-8, or not JSON.
    """
    text = decode_text(body)
    strict = name.endswith(".json")
    if not strict and not text.lstrip().startswith("{"):
        return [text]
    try:
        found = read_json(text)
    except TextError as error:
        if not strict:
            return [text]
        raise TextError(f"not JSON: {error}") from error
    return found if isinstance(found, list) else [found]
