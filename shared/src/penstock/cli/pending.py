"""``penstock runs tool-calls``, ``tool-result``, ``unknown`` and ``resolve``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from penstock.cli.display import (
    compact,
    console,
    moment,
    print_done,
    print_json,
    print_list,
    status_text,
)
from penstock.cli.gateway import gateway, send
from penstock.cli.inputs import read_input
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, Digest, Output, Reason, RunId, StepId

if TYPE_CHECKING:
    from penstock.contracts.json import Json
    from penstock.runs.replies import CallView, UnknownView
    from penstock.runs.views import NodeRecordView

_DIGEST_SHOWN: Final = 12

app = group()


def answer_command(run_id: str, record: NodeRecordView) -> str:
    """Return the command line that answers a pending request; empty where time alone does."""
    from penstock.contracts.ids import RecordId

    if (request := record.request) is None:
        return ""
    step_id = shlex.quote(RecordId.parse(record.record_id).step_id)
    match record.kind:
        case "approval":
            return f"penstock approvals approve|reject {run_id} {shlex.quote(record.record_id)}"
        case "client_tool":
            return f"penstock runs tool-result {run_id} {step_id} --output JSON"
        case "resolution":
            return f"penstock runs resolve {run_id} {step_id} retry|succeed|fail"
        case _:
            return f"penstock signal {run_id} {shlex.quote(request.name)} --payload JSON"


@app.command("tool-calls")
def tool_calls(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """List the pending client tool calls of a run."""
    with gateway(context) as client:
        _print_calls(client.tool_calls(run_id).items, as_json=as_json)


@app.command()
def unknown(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """List steps with an unknown outcome. They wait for a resolution."""
    from penstock.runs.replies import Unknowns

    found = send(context, Unknowns, "GET", "/v1/runs/{}/unknown", ids=[run_id]).items
    _print_calls(found, as_json=as_json)


def _print_calls(found: Sequence[CallView | UnknownView], *, as_json: bool) -> None:
    columns: dict[str, Callable[[CallView | UnknownView], str]] = {
        "step": lambda one: one.step_id,
        "tool": lambda one: one.tool,
        "digest": lambda one: one.digest[:_DIGEST_SHOWN],
        "asked": lambda one: moment(one.asked_at),
        "expires": lambda one: moment(one.expires_at),
        "arguments": lambda one: compact(one.arguments, 120) or getattr(one, "message", ""),
    }
    print_list(found, columns, as_json=as_json)


@app.command("tool-result")
def tool_result(
    context: typer.Context,
    run_id: RunId,
    step_id: StepId,
    output: Output = "null",
    error: Annotated[str | None, typer.Option(help="Fail the call with this error.")] = None,
    wait: Annotated[
        int | None, typer.Option(min=1, help="Seconds to wait for the end or the next call.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit the result of a client tool call."""
    value = read_input(output, option="--output")
    with gateway(context) as client:
        run = client.tool_result(run_id, step_id, value, error=error, wait_seconds=wait)
    if as_json:
        print_json(run)
        return
    screen = console()
    screen.print(run_id, status_text(run.status))
    for record in run.waiting_for:
        screen.print(f"  waits for {record.record_id}:", end=" ")
        if record.request is not None:
            arguments = compact(record.request.arguments)
            screen.print(f"{record.request.name} {arguments}")


@app.command()
def resolve(
    context: typer.Context,
    run_id: RunId,
    step_id: StepId,
    action: Annotated[str, typer.Argument(metavar="retry|succeed|fail", help="Resolution.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Output, for succeed: JSON, text, @file or @-."),
    ] = None,
    digest: Digest = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Resolve the unknown outcome of a lost attempt."""
    from penstock.runs.views import RunView

    body: dict[str, Json] = {"action": action, "reason": reason}
    if output is not None:
        body["output"] = read_input(output, option="--output")
    if digest is not None:
        body["digest"] = digest
    path = "/v1/runs/{}/steps/{}/resolve"
    run = send(context, RunView, "POST", path, body, ids=[run_id, step_id])
    print_done(run, run_id, status_text(run.status), as_json=as_json)
