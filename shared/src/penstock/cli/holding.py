"""``penstock runs pause``, ``resume``, ``cancel-step`` and ``cancel-many``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from penstock.cli.api import Api
from penstock.cli.display import console, print_json, status_text
from penstock.cli.failure import MISUSED, CommandError
from penstock.target import Target

_MANY_SECONDS: Final = 300.0


def hold(target: Target, run_id: str, verb: str, *, reason: str) -> None:
    """Pause or resume a run and say where it is."""
    with Api(target) as api:
        run = api.call("POST", f"/v1/runs/{run_id}/{verb}", body={"reason": reason})
    console().print(run_id, status_text(run["status"]))


def cancel_step(target: Target, run_id: str, step_id: str, *, reason: str) -> None:
    """Stop one step and say where it is."""
    path = f"/v1/runs/{run_id}/steps/{step_id}/cancel"
    with Api(target) as api:
        run = api.call("POST", path, body={"reason": reason})
    step = next(step for step in run["steps"] if step["step_id"] == step_id)
    console().print(run_id, step_id, status_text(step["status"]))


def cancel_many(
    target: Target,
    filters: Mapping[str, Any],
    *,
    limit: int,
    dry_run: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Ask all runs that match to stop, and say which they are."""
    body = {**filters, "limit": limit, "dry_run": dry_run, "reason": reason}
    if "tag" in filters:
        body["tag"] = dict(read_pair(text, option="--tag") for text in filters["tag"])
    with Api(target) as api:
        done = api.call("POST", "/v1/runs/cancel", body=body, timeout_seconds=_MANY_SECONDS)
    if as_json:
        print_json(done)
        return
    screen = console()
    for run_id in done["asked"]:
        screen.print(run_id, "would be asked to stop" if dry_run else "asked to stop")
    for run_id in done["asked_before"]:
        screen.print(run_id, "[dim]was asked before[/]")
    for run_id in done["ended"]:
        screen.print(run_id, "[dim]has ended[/]")
    more = "; there are more" if done["more"] else ""
    screen.print(f"{done['matched']} runs matched, {len(done['asked'])} asked{more}")


def read_pair(text: str, *, option: str) -> tuple[str, str]:
    """Read ``NAME=VALUE``.

    Raises:
        CommandError: There is no ``=`` in it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"{option} takes NAME=VALUE, not {text!r}", exit_code=MISUSED)
    return name, value
