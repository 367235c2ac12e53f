"""How commands print: statuses in colour, lists as tables, JSON for scripts.

rich is imported when something is printed, so that help is fast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Final, TypeVar

from penstock.cli.printable import printable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

T = TypeVar("T")

STATUS_STYLE: Final = {
    status: style
    for style, statuses in {
        "dim": "created planned stopped closed skipped",
        "cyan": "running scheduled working queued",
        "green": "ok done succeeded approved live",
        "bold red": "fail failed unknown rejected lost",
        "yellow": "unserved warn cancelled waiting paused open suspect draining",
        "red": "expired",
    }.items()
    for status in statuses.split()
}
_WIDTH: Final = 400
_PIPE_WIDTH: Final = 160
_LEAST_WIDTH: Final = 100
"""In a narrower terminal, tables would lose their last column."""


def console() -> Console:
    """Return a console on standard output; colours only for a terminal or with FORCE_COLOR.

    Text of runs is printed as it is: ``[red]`` in an output is no markup, and control characters
    are shown as escapes.
    """
    from rich.console import Console

    class SafeConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*map(_safe, objects), **options)

    # A pipe has no columns: lines are not cut at 80 there.
    wide = max(get_terminal_size((_PIPE_WIDTH, 24)).columns, _LEAST_WIDTH)
    return SafeConsole(markup=False, emoji=False, highlight=False, soft_wrap=True, width=wide)


def print_json(value: object, *, pretty: bool = True) -> None:
    """Print a value, models in it included, as JSON; on one line unless ``pretty``."""
    unicode = sys.stdout.encoding.lower().startswith("utf")
    text = json.dumps(
        value, ensure_ascii=not unicode, indent=2 if pretty else None, default=_as_json
    )
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def _as_json(model: BaseModel) -> object:
    return model.model_dump(mode="json")


def compact(value: object, width: int = _WIDTH) -> str:
    """Return a value on one line: text as it is, anything else as JSON, cut at ``width``."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def status_text(status: str, styles: Mapping[str, str] = STATUS_STYLE) -> Text:
    """Return a status in its colour."""
    from rich.text import Text

    return Text(status, style=styles.get(status, ""))


def moment(at: datetime | str | None) -> str:
    """Return a time as local time of day, with the date unless it is today's."""
    if not at:
        return ""
    at = (datetime.fromisoformat(at) if isinstance(at, str) else at).astimezone()
    today = datetime.now(at.tzinfo).date()
    return at.strftime("%H:%M:%S" if at.date() == today else "%Y-%m-%d %H:%M")


def seconds_between(start: datetime | None, end: datetime | None) -> str:
    """Return the time between two times in seconds; empty if one is unknown."""
    return "" if start is None or end is None else f"{(end - start).total_seconds():.2f} s"


def print_facts(screen: Console, facts: Mapping[str, object]) -> None:
    """Print labels with their values, one per line; empty ones are left out."""
    for label, value in facts.items():
        if value:
            screen.print(f"  {label:<8} ", style="dim", end="")
            screen.print(str(value))


def print_list(
    found: Sequence[T], columns: Mapping[str, Callable[[T], str | Text]], *, as_json: bool
) -> None:
    """Print items as JSON, or as a table with a function for each column."""
    if as_json:
        print_json(found)
    else:
        rows = ([cell(one) for cell in columns.values()] for one in found)
        console().print(table(columns, rows))


def table(columns: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> Table:
    """Return a plain table; if it is too wide, its last column is folded."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="dim")
    *most, last = columns
    for column in most:
        shown.add_column(column, no_wrap=True)
    shown.add_column(last, overflow="fold")
    for row in rows:
        shown.add_row(*map(_safe, row))
    return shown


def _safe(item: Any) -> Any:
    """Return a text without control characters; other renderables were built of such texts."""
    from rich.text import Text

    if isinstance(item, str):
        return printable(item)
    if isinstance(item, Text) and (text := printable(item.plain)) != item.plain:
        return Text(text, style=item.style, end=item.end)
    return item
