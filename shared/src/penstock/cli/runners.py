"""``penstock runners``: list live runners."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from penstock.cli.display import compact, print_list, status_text
from penstock.cli.gateway import send
from penstock.cli.options import AsJson

if TYPE_CHECKING:
    from rich.text import Text

    from penstock.contracts.rpc import RunnerView


def runners(context: typer.Context, as_json: AsJson = False) -> None:
    """Print the live runners and their load."""
    from penstock.contracts.rpc import Runners

    found = send(context, Runners, "GET", "/v1/runners").items
    columns: dict[str, Callable[[RunnerView], str | Text]] = {
        "queue": lambda one: one.runner.pool,
        "runner": lambda one: one.runner.runner_id,
        "state": lambda one: status_text(one.state),
        "load": lambda one: f"{one.runner.in_flight}/{one.runner.concurrency}",
        "silent": lambda one: f"{one.silent_seconds:.0f} s",
        "can do": lambda one: compact(", ".join(can.name for can in one.runner.capabilities), 80),
    }
    print_list(found, columns, as_json=as_json)
