"""``penstock dead``: dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from penstock.cli.api import Api
from penstock.cli.display import compact, console, moment, print_json, table
from penstock.cli.failure import MISUSED, CommandError
from penstock.target import Target

_MANY_SECONDS: Final = 300.0


def list_letters(target: Target, wanted: Mapping[str, Any], *, limit: int, as_json: bool) -> None:
    """Show dead letters, the oldest first."""
    filters = {name: value for name, value in wanted.items() if value is not None}
    with Api(target) as api:
        found = list(api.pages("/v1/dead-letters", filters, limit))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(letter["seq"]),
            moment(letter["occurred_at"]),
            letter["consumer"],
            letter["run_id"],
            str(letter["deliveries"]),
            letter["remedy"],
            compact(f"{letter['error']['code']}: {letter['error']['message']}", 200),
        )
        for letter in found
    ]
    columns = ("seq", "at", "consumer", "run", "deliveries", "requeue", "error")
    console().print(table(columns, rows))


def show_letter(target: Target, seq: int) -> None:
    """Show one letter with its message."""
    with Api(target) as api:
        print_json(api.call("GET", f"/v1/dead-letters/{seq}"))


def apply(
    target: Target,
    verb: str,
    seqs: Sequence[int],
    wanted: Mapping[str, Any],
    *,
    everything: bool,
    limit: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Requeue or discard letters, by their sequences or by what they are.

    Raises:
        CommandError: It is not said which, or some letters could not be requeued.
    """
    filters = {name: value for name, value in wanted.items() if value is not None}
    if sum((bool(seqs), bool(filters), everything)) != 1:
        raise CommandError("say which letters: sequences, or filters, or --all", exit_code=MISUSED)
    if seqs and dry_run:
        raise CommandError("--dry-run goes with filters or --all", exit_code=MISUSED)
    with Api(target) as api:
        if seqs:
            done = [api.call("POST", f"/v1/dead-letters/{seq}/{verb}") for seq in seqs]
            _tell(verb, {"done": [letter["seq"] for letter in done]}, as_json=as_json)
            return
        body = {"filter": filters, "limit": limit, "dry_run": dry_run}
        answer = api.call(
            "POST", f"/v1/dead-letters/{verb}", body=body, timeout_seconds=_MANY_SECONDS
        )
    _tell(verb, answer, as_json=as_json)
    if answer["refused"]:
        raise CommandError(f"{len(answer['refused'])} letters stay")


def _tell(verb: str, answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    screen = console()
    would = "would be " if answer.get("dry_run") else ""
    done = "requeued" if verb == "requeue" else "discarded"
    screen.print(f"{len(answer['done'])} letters {would}{done}")
    for refused in answer.get("refused") or ():
        error = refused["error"]
        screen.print(f"  {refused['seq']}: {error['code']}: {error['message']}", markup=False)
    if answer.get("more"):
        screen.print("there are more: ask again")
