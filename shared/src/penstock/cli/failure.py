"""A failed command: one clear line, findings with their paths, an exit code."""

from __future__ import annotations

import os
import sys
import textwrap
from shutil import get_terminal_size
from typing import Final, NamedTuple, TextIO

from penstock.cli.printable import printable

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as of shells."""


class Finding(NamedTuple):
    """One detail: its path, the fault, the allowed values."""

    path: str
    message: str
    allowed: str | None = None


class CommandError(Exception):
    """The command failed; ``exit_code`` is 2 if another command line would succeed."""

    def __init__(
        self, message: str, *, findings: tuple[Finding, ...] = (), exit_code: int = FAILED
    ) -> None:
        """Create the error; ``message`` is one line for people."""
        super().__init__(message)
        self.message = message
        self.findings = findings
        self.exit_code = exit_code


def print_error(error: CommandError, output: TextIO | None = None) -> None:
    """Print an error as ``error: ...`` with one line per finding; a terminal gets them wrapped."""
    output = sys.stderr if output is None else output
    lines = [f"error: {printable(error.message)}"]
    for path, message, allowed in error.findings:
        place = f"{path}: " if path else ""
        hint = f" (allowed: {allowed})" if allowed else ""
        lines.append(printable(f"  {place}{message}{hint}"))
    if output.isatty():
        width = get_terminal_size().columns
        lines = ["\n".join(_wrapped(part, width) for part in line.split("\n")) for line in lines]
        if not os.environ.get("NO_COLOR"):
            lines[0] = lines[0].replace("error:", "\x1b[1;31merror:\x1b[0m", 1)
    output.write("\n".join(lines) + "\n")
    output.flush()


def _wrapped(line: str, width: int) -> str:
    """Return a line in pieces; ids and commands stay whole, so that they can be copied."""
    return textwrap.fill(
        line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
