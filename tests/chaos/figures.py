"""Figures of chaos, gathered by the tests and printed as tables at the very end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Figures:
    """The lines of one table and the notes below it."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """Test, what, figure."""
    details: list[str] = field(default_factory=list)

    def add(self, test: str, what: str, figure: object) -> None:
        """Add a line."""
        self.rows.append((test, what, str(figure)))

    def lines(self) -> list[str]:
        """Return the table."""
        return [*self.details, "", *table(("test", "what", "figure"), self.rows)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows as the lines of a Markdown table with columns of even width."""
    cells = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` (0 to 1) of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> str:
    """Return p50, p99 and maximum of times in seconds."""
    if not values:
        return "none"
    return (
        f"{percentile(values, 0.5):.1f} / {percentile(values, 0.99):.1f} / {max(values):.1f} s"
        f" (of {len(values)})"
    )
