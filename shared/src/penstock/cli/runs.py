"""``penstock runs`` and ``penstock runners``, as the gateway tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import typer

from penstock.cli.api import Api
from penstock.cli.display import (
    DELTA,
    FINAL_STATUS,
    EventPrinter,
    compact,
    console,
    moment,
    print_json,
    seconds_between,
    status_text,
    table,
)
from penstock.cli.failure import FAILED, CommandError
from penstock.cli.spans import instant
from penstock.target import Target

_LIST_WIDTH: Final = 92
"""Columns that a list of runs takes before the outcome."""


def list_runs(
    target: Target,
    wanted: Mapping[str, Any],
    *,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show runs in order of time; ``wanted`` holds filters as the API names them."""
    filters = {name: value for name, value in wanted.items() if value not in (None, [])}
    for name, text, option in (
        ("created_from", since, "--since"),
        ("created_before", until, "--until"),
    ):
        if (at := instant(text, option=option)) is not None:
            filters[name] = at
    with Api(target) as api:
        found = list(api.pages("/v1/runs", filters, limit))
    if as_json:
        print_json(found)
        return
    screen = console()
    room = max(20, screen.width - _LIST_WIDTH)
    rows = [
        (
            run["run_id"],
            status_text(run["status"]),
            f"{run['name']} v{run['version']}",
            run["trigger"],
            moment(run["created_at"]),
            seconds_between(run["created_at"], run.get("ended_at")),
            compact(_outcome(run), room),
        )
        for run in found
    ]
    columns = ("run", "status", "name", "trigger", "created", "took", "outcome")
    screen.print(table(columns, rows))


def _outcome(run: dict[str, Any]) -> Any:
    error = run.get("error")
    return f"{error['code']}: {error['message']}" if error else run.get("output")


def show_run(
    target: Target,
    run_id: str,
    *,
    as_json: bool,
    at_seq: int | None = None,
    node_records: bool = False,
) -> None:
    """Show one run with its steps, now or as it was at a sequence of the log."""
    params: dict[str, str | int] = {} if at_seq is None else {"at_seq": at_seq}
    if node_records:
        params["node_records"] = "true"
    with Api(target) as api:
        run = api.call("GET", f"/v1/runs/{run_id}", params=params)
        while cursor := run.pop("next_steps_cursor", None):
            following = {**params, "steps_cursor": cursor, "steps_limit": 1000}
            page = api.call("GET", f"/v1/runs/{run_id}", params=following)
            for name in ("steps", "children"):
                run[name] += page[name]
            run["next_steps_cursor"] = page["next_steps_cursor"]
    if as_json:
        print_json(run)
        return
    screen = console()
    screen.print(run["run_id"], status_text(run["status"]), f"{run['name']} v{run['version']}")
    usage = run.get("usage") or {}
    facts = {
        "kind": run["kind"],
        "trigger": run["trigger"],
        "session": run.get("session_id"),
        "created": moment(run["created_at"]),
        "took": seconds_between(run["created_at"], run.get("ended_at")),
        "input": compact(run.get("input")),
        "output": compact(run.get("output")),
        "error": compact(run.get("error")),
        "cost": _cost(usage),
        "left": _left(run.get("budget") or {}),
        "parent": (run.get("parent") or {}).get("run_id"),
        "from": _forked(run.get("forked_from") or {}),
        "children": ", ".join(child["run_id"] for child in run.get("children") or ()),
    }
    for label, value in facts.items():
        if value:
            screen.print(f"  [dim]{label:<8}[/] ", end="")
            screen.print(str(value), markup=False)
    rows = [
        (
            step["step_id"],
            step["kind"],
            step["name"],
            status_text(step["status"]),
            str(step["attempt"]),
            seconds_between(step.get("started_at"), step.get("ended_at")),
            compact(_outcome(step), 80),
        )
        for step in run.get("steps") or ()
    ]
    if rows:
        screen.print(table(("step", "kind", "name", "status", "attempt", "took", "outcome"), rows))
    if waits := [_record_row(node_record) for node_record in run.get("waiting_for") or ()]:
        screen.print(table(("waits for", "kind", "status", "until", "what"), waits))
    if shown := [_record_row(node_record) for node_record in run.get("node_records") or ()]:
        screen.print(table(("node_record", "kind", "status", "until", "what"), shown))


def _record_row(node_record: dict[str, Any]) -> tuple[str, str, Any, str, str]:
    request = node_record.get("request") or {}
    said = (
        request.get("name"),
        compact(request.get("arguments"), 80),
        node_record.get("choice"),
        compact(_outcome(node_record), 80),
    )
    what = " ".join(str(part) for part in said if part)
    status = status_text(node_record["status"])
    return (
        node_record["record_id"],
        node_record["kind"],
        status,
        moment(node_record.get("due_at")),
        what,
    )


def _left(budget: dict[str, Any]) -> str:
    said = ((name, part) for name, part in budget.items() if part)
    return ", ".join(f"{part['left']:g} of {part['limit']:g} {name}" for name, part in said)


def _forked(origin: dict[str, Any]) -> str:
    if not origin:
        return ""
    return f"{origin['run_id']} at {origin['at_seq']} ({origin['mode']})"


def _cost(usage: dict[str, Any]) -> str:
    if not usage.get("model_calls"):
        return ""
    price = f"${usage['cost_usd']:.6f}" + (" or more" if usage.get("unknown_price") else "")
    tokens = f"{usage['input_tokens']} + {usage['output_tokens']} tokens"
    return f"{price}, {tokens}, {usage['model_calls']} model calls"


def tail_run(target: Target, run_id: str, *, after: str, limit: int | None, as_json: bool) -> None:
    """Show a run's events until it ends; the exit code is 1 if it did not end well."""
    with Api(target) as api:
        status = follow(api, run_id, after=after, limit=limit, as_json=as_json)
    if status in ("failed", "cancelled"):
        raise typer.Exit(FAILED)


def follow(
    api: Api, run_id: str, *, after: str = "0", limit: int | None = None, as_json: bool = False
) -> str:
    """Print a run's events as they come; return its final status, or ``running`` if cut short.

    Raises:
        CommandError: The run is unknown, or the stream ended before the run.
    """
    printer, seen = EventPrinter(console()), 0
    try:
        for event in api.events(f"/v1/runs/{run_id}/events", after=after):
            body = event.data
            if as_json:
                print_json(body, pretty=False)
            else:
                printer.show(body)
            if body["type"] in FINAL_STATUS:
                return FINAL_STATUS[body["type"]]
            seen += body["type"] != DELTA
            if limit is not None and seen >= limit:
                return "running"
    except KeyboardInterrupt:
        return "running"
    finally:
        printer.close()
    raise CommandError(f"the event stream of {run_id} ended before the run did")


def cancel_run(target: Target, run_id: str, *, reason: str) -> None:
    """Ask a run to stop and say where it is."""
    with Api(target) as api:
        run = api.call("POST", f"/v1/runs/{run_id}/cancel", body={"reason": reason})
    screen = console()
    screen.print(run_id, status_text(run["status"]) if "status" in run else "asked to stop")


def list_runners(target: Target, *, as_json: bool) -> None:
    """Show the runners that the registry knows."""
    with Api(target) as api:
        found = api.call("GET", "/v1/runners")["items"]
    if as_json:
        print_json(found)
        return
    rows = []
    for view in found:
        runner = view["runner"]
        rows.append(
            (
                f"{runner['kind']}.{runner['queue']}",
                runner["runner_id"],
                status_text(view["state"]),
                f"{runner['in_flight']}/{runner['concurrency']}",
                f"{view['silent_seconds']:.0f} s",
                compact(", ".join(item["name"] for item in runner["capabilities"]), 80),
            )
        )
    columns = ("queue", "runner", "state", "load", "silent", "can do")
    console().print(table(columns, rows))
