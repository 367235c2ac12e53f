"""How commands print: statuses in colour, lists as tables, JSON for scripts.

rich is imported when something is printed, so that help is fast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Final, TypeVar

from penstock.cli.printable import printable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, ConsoleOptions
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
_PIPE_WIDTH: Final = 100_000
"""Without a terminal, no line is wrapped."""
_LEAST_WIDTH: Final = 40
_LEAST_LAST: Final = 24
"""Columns that a table leaves to its last column, which is folded; else rows are split."""
_GAP: Final = 2
_INDENT: Final = 4


def console() -> Console:
    """Return a console on standard output; colours only for a terminal or with FORCE_COLOR.

    Text of runs is printed as it is: ``[red]`` in an output is no markup, and control characters
    are shown as escapes. Lines are wrapped at the width of the terminal, if there is one.
    """
    from rich.console import Console

    class SafeConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*map(_safe, objects), **options)

    columns = terminal_columns()
    wide = _PIPE_WIDTH if columns is None else max(columns, _LEAST_WIDTH)
    return SafeConsole(
        markup=False, emoji=False, highlight=False, soft_wrap=columns is None, width=wide
    )


def terminal_columns() -> int | None:
    """Return the width of the terminal; ``None`` if standard output is none."""
    return get_terminal_size().columns if sys.stdout.isatty() else None


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
    from rich.table import Table
    from rich.text import Text

    shown = Table.grid()
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for label, value in facts.items():
        if value:
            shown.add_row(f"  {label:<8} ", Text(printable(str(value))))
    screen.print(shown)


def print_done(done: object, *text: str | Text, as_json: bool) -> None:
    """Print what a command did: as JSON, or as one line of text."""
    if as_json:
        print_json(done)
    else:
        console().print(*text)


def print_list(
    found: Sequence[T], columns: Mapping[str, Callable[[T], str | Text]], *, as_json: bool
) -> None:
    """Print items as JSON, or as a table with a function for each column."""
    if as_json:
        print_json(found)
    else:
        rows = ([cell(one) for cell in columns.values()] for one in found)
        console().print(table(columns, rows))


def table(columns: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> Grid:
    """Return a plain table."""
    return Grid([str(column) for column in columns], [[*map(_text, row)] for row in rows])


class Grid:
    """A plain table that fits the terminal.

    If it is too wide, its last column is folded. If that leaves too little room for it, the
    columns beyond the terminal follow each row on lines of their own, with their names.
    """

    def __init__(self, columns: list[str], rows: list[list[Text]]) -> None:
        """Create a table of cells that hold no control characters."""
        self._columns = columns
        self._rows = rows
        self._widths = [
            max([len(name), *(row[index].cell_len for row in rows)])
            for index, name in enumerate(columns)
        ]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """Yield what rich prints."""
        from rich.padding import Padding
        from rich.text import Text

        *most, last = self._widths
        if sum(most) + _GAP * len(most) + min(last, _LEAST_LAST) <= options.max_width:
            yield self._whole()
            return
        fitting, width = 1, self._widths[0]
        while width + _GAP + self._widths[fitting] <= options.max_width:
            width += _GAP + self._widths[fitting]
            fitting += 1
        yield self._line([Text(name, style="dim") for name in self._columns[:fitting]])
        for row in self._rows:
            yield self._line(row[:fitting])
            for line in self._rest(row, fitting, options.max_width - _INDENT):
                yield Padding(line, (0, 0, 0, _INDENT))

    def _rest(self, row: list[Text], first: int, width: int) -> list[Text]:
        """Return the cells of a row from ``first`` on, as lines of names and values."""
        from rich.text import Text

        lines: list[Text] = []
        for name, cell in zip(self._columns[first:], row[first:], strict=True):
            if not cell:
                continue
            part = Text().append(f"{name} " if name else "", style="dim").append_text(cell)
            if lines and lines[-1].cell_len + _GAP + part.cell_len <= width:
                lines[-1].append(" " * _GAP).append_text(part)
            else:
                lines.append(part)
        return lines

    def _line(self, cells: Sequence[Text]) -> Text:
        from rich.text import Text

        line = Text()
        for cell, width in zip(cells, self._widths, strict=False):
            line.append_text(cell).append(" " * (width + _GAP - cell.cell_len))
        line.rstrip()
        return line

    def _whole(self) -> Table:
        from rich.table import Table

        shown = Table(box=None, pad_edge=False, header_style="dim")
        *most, last = self._columns
        for column in most:
            shown.add_column(column, no_wrap=True)
        shown.add_column(last, overflow="fold")
        for row in self._rows:
            shown.add_row(*row)
        return shown


def _text(cell: str | Text) -> Text:
    from rich.text import Text

    found = _safe(cell)
    return Text(found) if isinstance(found, str) else found


def _safe(item: Any) -> Any:
    """Return a text without control characters; other renderables were built of such texts."""
    from rich.text import Text

    if isinstance(item, str):
        return printable(item)
    if isinstance(item, Text) and (text := printable(item.plain)) != item.plain:
        return Text(text, style=item.style, end=item.end)
    return item
