"""``penstock invoke``: start a run, and watch or await it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import typer

from penstock.cli.api import Api
from penstock.cli.display import compact, console, print_json, status_text
from penstock.cli.failure import FAILED, MISUSED, CommandError
from penstock.cli.holding import read_pair
from penstock.cli.runs import follow
from penstock.target import Target

_GRACE_SECONDS: Final = 10.0


class InvokeOptions(NamedTuple):
    """What can be chosen about a run."""

    input_text: str
    follow: bool
    wait_seconds: int | None
    session_id: str | None
    idempotency_key: str | None
    as_json: bool
    priority: int | None = None
    tags: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


def invoke_name(target: Target, name: str, options: InvokeOptions) -> None:
    """Start a run; the exit code is 1 if its end was awaited and is not ``done``.

    Raises:
        CommandError: The input cannot be read, or the gateway refused.
    """
    body: dict[str, Any] = {"name": name, "input": read_input(options.input_text)}
    if options.session_id is not None:
        body["session_id"] = options.session_id
    if options.priority is not None:
        body["priority"] = options.priority
    if options.tags:
        body["tags"] = dict(read_pair(text, option="--tag") for text in options.tags)
    if options.limits:
        given = (read_pair(text, option="--limit") for text in options.limits)
        body["limits"] = {field: read_input(value, option="--limit") for field, value in given}
    headers = {}
    if options.idempotency_key is not None:
        headers["Idempotency-Key"] = options.idempotency_key
    wait = 0 if options.follow else options.wait_seconds or 0
    if wait:
        headers["Prefer"] = f"wait={wait}"
    with Api(target) as api:
        run = api.call(
            "POST", "/v1/runs", body=body, headers=headers, timeout_seconds=wait + _GRACE_SECONDS
        )
        if options.follow:
            raise typer.Exit(_code(follow(api, run["run_id"], as_json=options.as_json)))
    _show(run, options)
    if wait:
        raise typer.Exit(_code(run["status"]))


def _show(run: dict[str, Any], options: InvokeOptions) -> None:
    if options.as_json:
        print_json(run)
        return
    screen = console()
    screen.print(run["run_id"], status_text(run["status"]))
    if (error := run.get("error")) is not None:
        screen.print(f"{error.get('code')}: {error.get('message')}", style="red", markup=False)
    elif run["status"] == "done":
        output = run.get("output")
        screen.print(compact(output, 4000) if isinstance(output, str) else "", end="")
        if not isinstance(output, str):
            print_json(output)
        else:
            screen.print()


def _code(status: str) -> int:
    return 0 if status == "done" else FAILED


def read_input(text: str, *, option: str = "--input") -> Any:
    """Read a value: JSON if it looks like it, else plain text; ``@file`` and ``@-`` read one.

    Raises:
        CommandError: The file cannot be read, or it looks like JSON and is not.
    """
    if text.startswith("@"):
        name = text[1:]
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{name}: {error.strerror}", exit_code=MISUSED) from error
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip()[:1] in ("{", "["):
            raise CommandError(f"{option} is not JSON: {error}", exit_code=MISUSED) from error
        return text
