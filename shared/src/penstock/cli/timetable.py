"""``penstock schedules``: where schedules are, pausing, firing, ticks to come."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from penstock.cli.api import Api
from penstock.cli.display import console, moment, print_json, status_text, table
from penstock.target import Target

_SCHEDULES: Final = "/v1/schedules"


def list_schedules(target: Target, *, limit: int, as_json: bool) -> None:
    """Show schedules with where they are.

    Raises:
        CommandError: The gateway cannot be reached, or refused.
    """
    with Api(target) as api:
        found = [
            {**_summary(one), "state": _state(api, one)} for one in api.pages(_SCHEDULES, {}, limit)
        ]
    if as_json:
        print_json(found)
        return
    rows = []
    for one in found:
        state = one["state"] or {}
        rows.append(
            [
                one["name"],
                one["when"],
                one["target"],
                _condition(one["state"]),
                moment(state.get("next_tick")),
                moment(state.get("last_tick")),
                str(state.get("fired", "")),
            ]
        )
    columns = ("schedule", "when", "starts", "", "next", "last", "runs")
    console().print(table(columns, rows))


def show_schedule(target: Target, name: str, *, runs: int, as_json: bool) -> None:
    """Show one schedule, where it is, and its latest runs.

    Raises:
        CommandError: There is no such schedule, or the gateway cannot be reached.
    """
    path = _path(name)
    with Api(target) as api:
        definition = api.call("GET", path)
        state = _state(api, definition)
        latest = list(api.pages(f"{path}/runs", {}, runs)) if runs else []
    if as_json:
        print_json({"definition": definition, "state": state, "runs": latest})
        return
    summary = _summary(definition)
    screen = console()
    screen.print(
        f"{name}: {summary['when']} starts {summary['target']}, {_condition(state)}", markup=False
    )
    if state is not None:
        screen.print(
            f"next {moment(state['next_tick']) or 'never'}, last {moment(state['last_tick'])}, "
            f"{state['fired']} fired, {state['left_out']} left out",
            markup=False,
        )
        if state["failure"] is not None:
            failure = state["failure"]
            said = f"{moment(failure['tick'])} {failure['error']['message']}"
            screen.print(f"{said} [{failure['error']['code']}]", style="red", markup=False)
    if latest:
        rows = [
            [one["run_id"], status_text(one["status"]), moment(one["created_at"])] for one in latest
        ]
        screen.print(table(("run", "status", "started"), rows))


def pause_schedule(target: Target, name: str, *, reason: str) -> None:
    """Let ticks pass by unused.

    Raises:
        CommandError: There is no such schedule in force.
    """
    with Api(target) as api:
        api.call("POST", f"{_path(name)}/pause", body={"reason": reason})
    console().print(f"{name} is paused", markup=False)


def resume_schedule(target: Target, name: str) -> None:
    """Use ticks again.

    Raises:
        CommandError: There is no such schedule in force, or its document pauses it.
    """
    with Api(target) as api:
        state = api.call("POST", f"{_path(name)}/resume")
    console().print(f"{name} resumes, next {moment(state['next_tick']) or 'never'}", markup=False)


def trigger_schedule(target: Target, name: str, *, key: str | None, as_json: bool) -> None:
    """Start a run now.

    Raises:
        CommandError: There is no such schedule in force, or its target is not published.
    """
    headers = {"Idempotency-Key": key} if key is not None else None
    with Api(target) as api:
        run = api.call("POST", f"{_path(name)}/trigger", headers=headers)
    if as_json:
        print_json(run)
        return
    console().print(run["run_id"], status_text(run["status"]))


def show_ticks(target: Target, name: str, *, count: int, after: str | None, as_json: bool) -> None:
    """Show ticks to come.

    Raises:
        CommandError: There is no such schedule in force, or ``after`` is no time.
    """
    asked: dict[str, str | int] = {"next": count}
    if after is not None:
        asked["after"] = after
    with Api(target) as api:
        ticks = api.call("GET", f"{_path(name)}/ticks", params=asked)["items"]
    if as_json:
        print_json(ticks)
        return
    rows = [[one["tick"], one["scheduled_at"], one["due_at"]] for one in ticks]
    console().print(table(("tick", "on its clock", "starts"), rows))


def _path(name: str) -> str:
    return f"{_SCHEDULES}/{quote(name, safe='')}"


def _state(api: Api, definition: dict[str, Any]) -> dict[str, Any] | None:
    """Return where a schedule is; ``None`` if it was never published."""
    if definition["published_version"] is None:
        return None
    state: dict[str, Any] = api.call("GET", f"{_path(definition['name'])}/state")
    return state


def _summary(definition: dict[str, Any]) -> dict[str, Any]:
    spec = definition["document"]["spec"]
    zone = spec.get("timezone", "UTC")
    every = spec.get("every")
    when = f"{spec.get('cron')} {zone}" if every is None else f"every {every}"
    return {"name": definition["name"], "when": when, "target": spec["target"]}


def _condition(state: dict[str, Any] | None) -> str:
    if state is None:
        return "draft"
    if state["paused"]:
        why = state["reason"] or f"by {state['paused_by']}"
        return f"paused ({why})"
    return "failing" if state["failure"] is not None else "live"
