"""What runs ask: approvals, calls of client tools, outcomes that nobody knows."""

from __future__ import annotations

from typing import Any, Final

from penstock.cli.api import Api
from penstock.cli.display import compact, console, moment, print_json, status_text, table
from penstock.cli.invoke import read_input
from penstock.target import Target

_GRACE_SECONDS: Final = 10.0
_DIGEST_SHOWN: Final = 12


def list_approvals(
    target: Target,
    *,
    status: str,
    role: str | None,
    run_id: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show approvals, the oldest first."""
    wanted = {"status": status, "role": role, "run_id": run_id}
    params = {name: value for name, value in wanted.items() if value is not None}
    with Api(target) as api:
        found = list(api.pages("/v1/approvals", params, limit))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one["run_id"],
            one["record_id"],
            status_text(one["status"]),
            one.get("role") or "",
            moment(one["asked_at"]),
            moment(one.get("expires_at")),
            _asked(one),
        )
        for one in found
    ]
    columns = ("run", "node_record", "status", "role", "asked", "expires", "what")
    console().print(table(columns, rows))


def _asked(one: dict[str, Any]) -> str:
    what = f"{one['tool']}({compact(one.get('arguments'), 120)})" if one.get("tool") else ""
    return " ".join(part for part in (what, one.get("message") or "") if part)


def show_approval(target: Target, run_id: str, record_id: str, *, as_json: bool) -> None:
    """Show one approval."""
    with Api(target) as api:
        one = api.call("GET", f"/v1/approvals/{run_id}/{record_id}")
    if as_json:
        print_json(one)
        return
    screen = console()
    screen.print(one["run_id"], one["record_id"], status_text(one["status"]))
    decided = one.get("decided") or {}
    facts = {
        "asks": one.get("tool") or one["step_id"],
        "message": one.get("message"),
        "role": one.get("role"),
        "digest": one.get("digest"),
        "asked": moment(one["asked_at"]),
        "expires": moment(one.get("expires_at")),
        "decided": " ".join(
            str(decided[name]) for name in ("decision", "by", "reason") if decided.get(name)
        ),
    }
    for label, value in facts.items():
        if value:
            screen.print(f"  [dim]{label:<8}[/] ", end="")
            screen.print(str(value), markup=False)
    print_json(one.get("arguments"))


def decide(
    target: Target, run_id: str, record_id: str, verb: str, *, digest: str | None, reason: str
) -> None:
    """Approve or reject, and say what is recorded."""
    body = {"reason": reason} if digest is None else {"reason": reason, "digest": digest}
    with Api(target) as api:
        one = api.call("POST", f"/v1/approvals/{run_id}/{record_id}/{verb}", body=body)
    by = (one.get("decided") or {}).get("by") or ""
    console().print(run_id, record_id, status_text(one["status"]), f"[dim]by {by}[/]")


def list_calls(target: Target, run_id: str, *, as_json: bool) -> None:
    """Show the calls that a run waits for its client to execute."""
    _list(target, f"/v1/runs/{run_id}/tool_calls", as_json=as_json)


def list_unknown(target: Target, run_id: str, *, as_json: bool) -> None:
    """Show the steps of a run whose outcome nobody knows."""
    _list(target, f"/v1/runs/{run_id}/unknown", as_json=as_json)


def _list(target: Target, path: str, *, as_json: bool) -> None:
    with Api(target) as api:
        found = api.call("GET", path)["items"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one["step_id"],
            one["tool"],
            one["digest"][:_DIGEST_SHOWN],
            moment(one["asked_at"]),
            moment(one.get("expires_at")),
            compact(one.get("arguments"), 120) or one.get("message") or "",
        )
        for one in found
    ]
    columns = ("step", "tool", "digest", "asked", "expires", "arguments")
    console().print(table(columns, rows))


def send_result(
    target: Target,
    run_id: str,
    step_id: str,
    output: str,
    *,
    error: str | None,
    wait: int | None,
    as_json: bool,
) -> None:
    """Say what a client tool returned; show where the run is then."""
    result: dict[str, Any] = {"step_id": step_id}
    if error is None:
        result["output"] = read_input(output, option="--output")
    else:
        result |= {"status": "failed", "error": {"message": error}}
    headers = {} if wait is None else {"Prefer": f"wait={wait}"}
    with Api(target) as api:
        run = api.call(
            "POST",
            f"/v1/runs/{run_id}/tool_results",
            body={"results": [result]},
            headers=headers,
            timeout_seconds=(wait or 20) + _GRACE_SECONDS,
        )
    if as_json:
        print_json(run)
        return
    screen = console()
    screen.print(run_id, status_text(run["status"]))
    for node_record in run.get("waiting_for") or ():
        request = node_record.get("request") or {}
        screen.print(f"  waits for {node_record['record_id']}:", end=" ")
        screen.print(f"{request.get('name')} {compact(request.get('arguments'))}", markup=False)


def resolve(
    target: Target,
    run_id: str,
    step_id: str,
    action: str,
    *,
    output: str | None,
    digest: str | None,
    reason: str,
) -> None:
    """Say what became of a lost attempt; show where the run is then."""
    body: dict[str, Any] = {"action": action, "reason": reason}
    if output is not None:
        body["output"] = read_input(output, option="--output")
    if digest is not None:
        body["digest"] = digest
    with Api(target) as api:
        run = api.call("POST", f"/v1/runs/{run_id}/steps/{step_id}/resolve", body=body)
    console().print(run_id, status_text(run["status"]))
