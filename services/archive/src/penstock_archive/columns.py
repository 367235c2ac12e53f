"""JSON in columns: a row that cannot be read does not hide the others of its list."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pydantic_core import from_json

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.json import Json
from penstock.contracts.structs import decode
from penstock.contracts.usage import Usage
from penstock.telemetry.logs import EventLog

ValueT = TypeVar("ValueT")

log = EventLog(__name__)


def read(text: str | None, reader: Callable[[str], ValueT], run_id: str) -> ValueT | None:
    """Return the value of a column; ``None`` for null, and logged for text that cannot be read."""
    if text is None:
        return None
    try:
        return reader(text)
    except ValueError as error:
        log.error("archive.unreadable_column", error=error, run_id=run_id)  # noqa: TRY400 - with it
        return None


def read_value(text: str | None, run_id: str) -> Json:
    """Return any JSON; see `read`."""
    return read(text, from_json, run_id)


def read_error(text: str | None, run_id: str) -> ErrorInfo | None:
    """Return a failure; see `read`."""
    return read(text, lambda body: decode(ErrorInfo, body), run_id)


def read_usage(text: str | None, run_id: str) -> Usage | None:
    """Return a usage; see `read`."""
    return read(text, lambda body: decode(Usage, body), run_id)
