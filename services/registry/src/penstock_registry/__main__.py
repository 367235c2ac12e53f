"""``python -m penstock_registry``."""

from __future__ import annotations

from penstock_registry.main import run
from penstock_registry.settings import RegistrySettings


def main() -> None:
    """Read the settings and serve until a signal stops the process."""
    run(RegistrySettings())


if __name__ == "__main__":
    main()
