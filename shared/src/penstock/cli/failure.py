"""What a command says when it cannot do its work: one clear line, details with their paths."""

from __future__ import annotations

import os
import sys
from typing import Final, NamedTuple, TextIO

FAILED: Final = 1
MISUSED: Final = 2


class Finding(NamedTuple):
    """One detail: where it was found, what is wrong, what would be allowed."""

    path: str
    message: str
    allowed: str | None = None


class CommandError(Exception):
    """The command failed; ``exit_code`` is 2 where the caller should ask differently."""

    def __init__(
        self,
        message: str,
        *,
        findings: tuple[Finding, ...] = (),
        exit_code: int = FAILED,
        code: str = "",
    ) -> None:
        """Create the error; ``message`` is one line for people, ``code`` the gateway's."""
        super().__init__(message)
        self.message = message
        self.findings = findings
        self.exit_code = exit_code
        self.code = code


def tell(error: CommandError, output: TextIO | None = None) -> None:
    """Print an error as ``error: ...`` with one line per finding."""
    output = sys.stderr if output is None else output
    coloured = output.isatty() and not os.environ.get("NO_COLOR")
    head = "\x1b[1;31merror:\x1b[0m" if coloured else "error:"
    output.write(f"{head} {error.message}\n")
    for path, message, allowed in error.findings:
        place = f"{path}: " if path else ""
        hint = f" (allowed: {allowed})" if allowed else ""
        output.write(f"  {place}{message}{hint}\n")
    output.flush()
