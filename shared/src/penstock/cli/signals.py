"""``penstock signal`` and ``penstock runs message``: news for runs."""

from __future__ import annotations

from typing import Any

from penstock.cli.api import Api
from penstock.cli.display import console, print_json
from penstock.cli.invoke import read_input
from penstock.target import Target


def send_event(
    target: Target,
    run_id: str | None,
    correlation: str | None,
    name: str,
    payload: str,
    *,
    key: str | None,
    as_json: bool,
) -> None:
    """Send an event to a run, or without one to those that wait for a correlation key."""
    body: dict[str, Any] = {"name": name, "payload": read_input(payload, option="--payload")}
    if run_id is not None:
        path = f"/v1/runs/{run_id}/signals"
    else:
        path = "/v1/signals"
        body["correlation"] = correlation
    _send(target, path, body, key=key, as_json=as_json)


def send_message(
    target: Target,
    place: str,
    name: str,
    payload: str,
    *,
    sender: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Send a message to a run or session, whose path is ``place``."""
    body: dict[str, Any] = {"name": name, "payload": read_input(payload, option="--payload")}
    if sender is not None:
        body["from_run"] = sender
    _send(target, f"{place}/messages", body, key=key, as_json=as_json)


def _send(
    target: Target, path: str, body: dict[str, Any], *, key: str | None, as_json: bool
) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    with Api(target) as api:
        answer = api.call("POST", path, body=body, headers=headers)
    if as_json:
        print_json(answer)
        return
    screen = console()
    for sent in answer.get("items") or [answer]:
        was = "was there already" if sent.get("repeated") else "sent"
        screen.print(sent["run_id"], sent["name"], was, f"[dim]sequence {sent['seq']}[/]")
