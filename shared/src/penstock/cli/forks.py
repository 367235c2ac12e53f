"""``penstock runs fork``, ``retry`` and ``replay``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from penstock.cli.api import Api
from penstock.cli.display import console, print_json, status_text
from penstock.cli.failure import FAILED
from penstock.cli.holding import read_pair
from penstock.cli.invoke import read_input
from penstock.cli.runs import follow
from penstock.target import Target


def start(
    target: Target,
    run_id: str,
    verb: str,
    wanted: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    key: str | None,
    follow_run: bool,
    as_json: bool,
) -> None:
    """Start a run that goes on from another one.

    Args:
        target: Where to.
        run_id: The run to go on from.
        verb: ``fork``, ``retry`` or ``replay``.
        wanted: Fields of the request as the API names them.
        given: Options as they were typed: ``override``, ``limit``, ``tag``, ``input``.
        key: Idempotency key.
        follow_run: Show the new run's events; the exit code is 1 if it does not end well.
        as_json: Print the new run as JSON.
    """
    body = {name: value for name, value in wanted.items() if value is not None}
    if isinstance(body.get("version"), str) and body["version"].isdigit():
        body["version"] = int(body["version"])
    if given.get("input") is not None:
        body["input"] = read_input(given["input"])
    for option, field in (("override", "overrides"), ("limit", "limits")):
        pairs = (read_pair(text, option=f"--{option}") for text in given.get(option) or ())
        found = {name: read_input(value, option=f"--{option}") for name, value in pairs}
        if found:
            body[field] = found
    if given.get("tag"):
        body["tags"] = dict(read_pair(text, option="--tag") for text in given["tag"])
    headers = {} if key is None else {"Idempotency-Key": key}
    with Api(target) as api:
        run = api.call("POST", f"/v1/runs/{run_id}/{verb}", body=body, headers=headers)
        if not follow_run:
            _show(run, as_json=as_json)
        elif follow(api, run["run_id"], as_json=as_json) in ("failed", "cancelled"):
            raise typer.Exit(FAILED)


def _show(run: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(run)
        return
    kept = sum(step["status"] == "succeeded" for step in run.get("steps") or ())
    screen = console()
    screen.print(run["run_id"], status_text(run["status"]), f"{kept} outcomes taken over")
