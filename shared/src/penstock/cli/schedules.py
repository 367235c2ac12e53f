"""``penstock schedules``: inspect, pause and trigger schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from penstock.cli.display import (
    console,
    moment,
    print_done,
    print_json,
    print_list,
    status_text,
    table,
)
from penstock.cli.gateway import gateway, send
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, StartKey

if TYPE_CHECKING:
    from rich.text import Text

    from penstock.client import Client
    from penstock.contracts.json import Json
    from penstock.contracts.rpc import Definition
    from penstock.runs.definition_views import ScheduleState
    from penstock.runs.views import RunView

_SCHEDULES: Final = "/v1/schedules"
_ONE: Final = "/v1/schedules/{}"

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule.")]

app = group()


@app.command("list")
def list_schedules(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number of items.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """List schedules with their next tick and the outcome of the last one."""
    from penstock.client import Call, Items
    from penstock.contracts.rpc import Definition

    with gateway(context) as client:
        page = Call(Items[Definition], "GET", _SCHEDULES, limit=limit)
        found = [(_summary(one), _state(client, one)) for one in client.pages(page)]
    if as_json:
        print_json([{**summary._asdict(), "state": state} for summary, state in found])
        return
    rows = [
        [
            *summary,
            _condition(state),
            moment(state.next_tick if state else None),
            moment(state.last_tick if state else None),
            str(state.fired) if state else "",
        ]
        for summary, state in found
    ]
    columns = ("schedule", "when", "starts", "", "next", "last", "runs")
    console().print(table(columns, rows))


@app.command()
def show(
    context: typer.Context,
    name: Name,
    runs: Annotated[int, typer.Option(min=0, max=100, help="Number of latest runs.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a schedule, its state and its latest runs."""
    from penstock.client import Call, Items, path_of
    from penstock.contracts.rpc import Definition
    from penstock.runs.views import RunView

    with gateway(context) as client:
        path = path_of(_ONE, name)
        definition = client.send(Call(Definition, "GET", path))
        state = _state(client, definition)
        latest = list(client.pages(Call(Items[RunView], "GET", f"{path}/runs", limit=runs)))
    if as_json:
        print_json({"definition": definition, "state": state, "runs": latest})
        return
    summary = _summary(definition)
    screen = console()
    screen.print(f"{name}: {summary.when} starts {summary.target}, {_condition(state)}")
    if state is not None:
        screen.print(
            f"next {moment(state.next_tick) or 'never'}, last {moment(state.last_tick)}, "
            f"{state.fired} fired, {state.left_out} left out",
            markup=False,
        )
        if state.failure is not None:
            error = state.failure.error
            line = f"{moment(state.failure.tick)} {error.message} [{error.code}]"
            screen.print(line, style="red")
    if latest:
        columns: dict[str, Callable[[RunView], str | Text]] = {
            "run": lambda one: one.run_id,
            "status": lambda one: status_text(one.status),
            "started": lambda one: moment(one.created_at),
        }
        print_list(latest, columns, as_json=False)


@app.command()
def pause(
    context: typer.Context,
    name: Name,
    reason: Annotated[str, typer.Option(help="Reason; stored with the schedule.")] = "",
    as_json: AsJson = False,
) -> None:
    """Pause a schedule: skip its ticks until it is resumed."""
    from penstock.runs.definition_views import ScheduleState

    body: Json = {"reason": reason}
    state = send(context, ScheduleState, "POST", f"{_ONE}/pause", body, ids=[name])
    print_done(state, f"{name} is paused", as_json=as_json)


@app.command()
def resume(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Resume a schedule; ticks during the pause stay skipped."""
    from penstock.runs.definition_views import ScheduleState

    state = send(context, ScheduleState, "POST", f"{_ONE}/resume", ids=[name])
    text = f"{name} resumes, next {moment(state.next_tick) or 'never'}"
    print_done(state, text, as_json=as_json)


@app.command()
def trigger(
    context: typer.Context, name: Name, key: StartKey = None, as_json: AsJson = False
) -> None:
    """Start a run of the schedule now; its ticks do not change."""
    from penstock.runs.views import RunView

    headers = {"Idempotency-Key": key}
    run = send(context, RunView, "POST", f"{_ONE}/trigger", ids=[name], headers=headers)
    print_done(run, run.run_id, status_text(run.status), as_json=as_json)


@app.command("next")
def show_next(
    context: typer.Context,
    name: Name,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=100, help="Number of ticks.")
    ] = 5,
    after: Annotated[
        str | None, typer.Option(help="Start at this time (RFC 3339) instead of now.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the next ticks in UTC and in the time zone of the schedule."""
    from penstock.runs.definition_views import Ticks

    params = {"next": count, "after": after}
    ticks = send(context, Ticks, "GET", f"{_ONE}/ticks", ids=[name], params=params).items
    shown = [one.model_dump(mode="json") for one in ticks]
    if as_json:
        print_json(shown)
    else:
        rows = [[one["tick"], one["scheduled_at"], one["due_at"]] for one in shown]
        console().print(table(("tick", "on its clock", "starts"), rows))


def _state(client: Client, definition: Definition) -> ScheduleState | None:
    """Return the state of a schedule; ``None`` if it was never published."""
    from penstock.client import Call, path_of
    from penstock.runs.definition_views import ScheduleState

    if definition.published_version is None:
        return None
    return client.send(Call(ScheduleState, "GET", path_of(f"{_ONE}/state", definition.name)))


class _Summary(NamedTuple):
    name: str
    when: str
    target: str


def _summary(definition: Definition) -> _Summary:
    """Return the essence of a document, which the registry has checked."""
    document: Any = definition.document
    spec = document["spec"]
    every = spec.get("every")
    when = (
        f"{spec.get('cron')} {spec.get('timezone', 'UTC')}" if every is None else f"every {every}"
    )
    return _Summary(definition.name, when, spec["target"])


def _condition(state: ScheduleState | None) -> str:
    if state is None:
        return "draft"
    if state.paused:
        return f"paused ({state.reason or f'by {state.paused_by}'})"
    return "failing" if state.failure is not None else "live"
