"""Entry point: ``python -m penstock_archive``."""

from __future__ import annotations

from penstock_archive.main import run
from penstock_archive.settings import ArchiveSettings


def main() -> None:
    """Read the settings and run."""
    run(ArchiveSettings())


if __name__ == "__main__":
    main()
