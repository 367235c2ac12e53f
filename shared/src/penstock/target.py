"""Where a command is to go: found from options, the environment, or a stack on this machine.

An option wins over its variable, that over the ``stack.json`` of a living stack in the data
folder, and that over the defaults.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from penstock.stack import StackState, read_stack_file

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_NATS_URL: Final = "nats://127.0.0.1:4222"
DEFAULT_DATA_DIR: Final = ".penstock"
DEFAULT_TENANT: Final = "default"


class Target(NamedTuple):
    """Where the gateway and the bus are, and as whom to ask."""

    url: str
    nats_url: str
    data_dir: Path
    api_key: str | None
    tenant: str
    stack: StackState | None
    """The living stack in ``data_dir``."""

    @property
    def monitor_url(self) -> str | None:
        """The monitoring HTTP of the bus, where it is known."""
        named = os.environ.get("PENSTOCK_NATS_MONITOR_URL")
        return named or (self.stack.monitor_url if self.stack is not None else None)


def find_target(
    *,
    url: str | None = None,
    data_dir: str | None = None,
    api_key: str | None = None,
    tenant: str | None = None,
) -> Target:
    """Decide where to go; ``None`` means that the option was not given."""
    environment = os.environ
    folder = Path(data_dir or environment.get("PENSTOCK_DATA_DIR") or DEFAULT_DATA_DIR)
    stack = read_stack_file(folder)
    gateway_url, nats_url = environment.get("PENSTOCK_URL"), environment.get("PENSTOCK_NATS_URL")
    if stack is not None:
        # A folder named on the command line wins over the environment.
        gateway_url = stack.url if data_dir else gateway_url or stack.url
        nats_url = stack.nats_url if data_dir else nats_url or stack.nats_url
    return Target(
        url=(url or gateway_url or DEFAULT_URL).rstrip("/"),
        nats_url=nats_url or DEFAULT_NATS_URL,
        data_dir=folder,
        api_key=api_key or environment.get("PENSTOCK_API_KEY") or None,
        tenant=tenant or environment.get("PENSTOCK_TENANT") or DEFAULT_TENANT,
        stack=stack,
    )
