"""Log events: a stable dotted name with fields, written as one JSON object per line.

Who is concerned (tenant, run, step, trace) is bound once per piece of work and stands in every
event below it; an event's own fields win over bound ones. Plain ``logging`` calls take
the same form: ``extra`` gives the fields, and below ``penstock`` the message is the event.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TextIO

from penstock.masks import Mask

if TYPE_CHECKING:
    from penstock.settings import LogFormat, LogLevel

CONTEXT_FIELDS: Final = ("tenant", "run_id", "step_id", "trace_id")
"""Present in every event; ``null`` where an event concerns none."""

_FIELDS_ATTRIBUTE: Final = "penstock_fields"
_STANDARD: Final = frozenset(
    (*vars(logging.makeLogRecord({})), "asctime", "message", "taskName", _FIELDS_ATTRIBUTE)
)
_QUIET_LIBRARIES: Final = (
    "LiteLLM",
    "aiosqlite",
    "alembic",
    "asyncio",
    "httpcore",
    "httpx",
    "nats",
)
_context: ContextVar[Mapping[str, object]] = ContextVar(
    "penstock_log_context", default=MappingProxyType({})
)


@contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Add fields to all events of the current task, inside the ``with`` block."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def bind_task(**fields: object) -> None:
    """Do the same for the rest of the current task; costs a third of ``bind``."""
    _context.set({**_context.get(), **fields})


def bound() -> Mapping[str, object]:
    """Return the fields bound in the current task."""
    return _context.get()


_LEAST_CONCEALED: Final = 4
"""Characters of a value that is worth hiding: shorter ones stand in every line."""
_concealed = Mask(())


def conceal(values: Iterable[str]) -> None:
    """Write ``[secret]`` instead of these values in all lines of this process, from now on."""
    global _concealed  # noqa: PLW0603 - logging is of the whole process
    longer = {value for value in values if len(value) >= _LEAST_CONCEALED}
    if not longer <= _concealed.values:
        _concealed = Mask(longer | _concealed.values)


def without_secrets(text: str) -> str:
    """Return ``text`` as it may be shown: with ``[secret]`` for each secret."""
    return _concealed.text(text)


class EventLog:
    """A logger whose methods take an event's dotted name and its fields."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        """Log an event that helps only in the search for a fault."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log an event of normal life."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log an event that Penstock handles itself but an operator should know."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, error: BaseException | None = None, **fields: object) -> None:
        """Log an event that needs an operator, with the traceback of ``error`` if given."""
        self._emit(logging.ERROR, event, fields, error)

    def exception(self, event: str, **fields: object) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._emit(logging.ERROR, event, fields, sys.exception())

    def _emit(
        self,
        level: int,
        event: str,
        fields: dict[str, object],
        error: BaseException | None = None,
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS_ATTRIBUTE: fields}, exc_info=error)


class JsonFormatter(logging.Formatter):
    """One JSON object per line; records of other libraries become the event ``log.message``."""

    def __init__(self, service: str, instance_id: str) -> None:
        super().__init__()
        self._service = service
        self._instance_id = instance_id

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        event, fields = _taken_apart(record)
        line: dict[str, object] = {
            "time": _time_of(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": event,
            "service": self._service,
            "instance_id": self._instance_id,
            **dict.fromkeys(CONTEXT_FIELDS),
            **fields,
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = self.formatException(record.exc_info)
        return _concealed.text(json.dumps(line, default=str, ensure_ascii=False))


class ConsoleFormatter(logging.Formatter):
    """One short line for people; values are quoted, so that no field can forge a line."""

    _COLOURS: Final = {"DEBUG": "2", "INFO": "36", "WARNING": "33", "ERROR": "31"}

    def __init__(self, service: str, *, colour: bool) -> None:
        super().__init__()
        self._service = service
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        event, fields = _taken_apart(record)
        level = f"{record.levelname:<7}"
        if self._colour:
            level = f"\x1b[{self._COLOURS.get(record.levelname, '31')}m{level}\x1b[0m"
        shown = (f"{name}={_shown(value)}" for name, value in fields.items() if value is not None)
        time = _time_of(record).astimezone().strftime("%H:%M:%S.%f")[:-3]
        line = " ".join((time, level, f"{self._service:<12}", event, *shown))
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return _concealed.text(line)


def configure(
    *,
    service: str,
    instance_id: str,
    level: LogLevel = "info",
    style: LogFormat = "json",
    stream: TextIO | None = None,
) -> None:
    """Send all logs of this process to one stream, in one format. Called once, by ``__main__``.

    Args:
        service: Name of the service, in every line.
        instance_id: Name of this replica, in every JSON line.
        level: Least level written; libraries known as chatty write warnings and worse only.
        style: JSON lines or text for people.
        stream: Where to write; standard error if not given.
    """
    target = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        JsonFormatter(service, instance_id)
        if style == "json"
        else ConsoleFormatter(service, colour=target.isatty())
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def _taken_apart(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    fields = dict(_context.get())
    if (own := getattr(record, _FIELDS_ATTRIBUTE, None)) is not None:
        fields.update(own)
        return record.msg, fields
    extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    fields.update(extra)
    if record.name.partition(".")[0].startswith("penstock"):
        return record.getMessage(), fields
    fields.update(logger=record.name, message=record.getMessage())
    return "log.message", fields


def _time_of(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _shown(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)
