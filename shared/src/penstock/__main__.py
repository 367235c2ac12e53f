"""Start the command line, or say which extra installs it."""

from __future__ import annotations

import sys
from typing import Final

_EXTRA: Final = frozenset({"httpx", "jiter", "rich", "typer"})
"""Modules of the extra ``cli``."""


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: At the end, or because the extra is not installed.
    """
    try:
        from penstock.cli.app import main as run  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        sys.exit(f"{error.name} is not installed: pip install 'penstock[cli]'")
    run()


if __name__ == "__main__":
    main()
