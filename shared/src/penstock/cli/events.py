"""The events of a run in a terminal, one per line; pieces of text while they arrive."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from penstock.cli.display import compact, console, moment, print_json
from penstock.cli.failure import FAILED, INTERRUPTED, CommandError
from penstock.client import Client
from penstock.runs.events import ClientEvent, EventType

EVENT_STYLE: Final = {
    kind: (sign, style)
    for sign, style, kinds in (
        ("▶", "bold cyan", "run_started"),
        ("»", "magenta", "user_input"),
        ("○", "cyan", "agent_invoke_started map_started"),
        ("●", "green", "agent_invoke_done node_done"),
        ("✗", "red", "approval_expired"),
        ("◇", "blue", "tool_call_started"),
        ("◆", "green", "tool_call_done"),
        ("?", "bold red", "tool_call_unknown"),
        ("◇", "magenta", "tool_call_created"),
        ("→", "magenta", "tool_result_received signal_received approval_decision"),
        ("→", "magenta", "resolution_decision"),
        ("?", "yellow", "approval_created resolution_created"),
        ("…", "yellow", "wait_started step_waiting"),
        ("!", "bold yellow", "queue_unserved"),
        ("…", "green", "wait_ended"),
        ("⑂", "cyan", "branch_taken"),
        ("·", "dim", "node_skipped phase_ended"),
        ("▷", "cyan", "child_run_started"),
        ("▶", "green", "child_run_done"),
        ("→", "blue", "message_sent"),
        ("→", "green", "message_delivered"),
        ("→", "cyan", "run_admitted"),
        ("‖", "yellow", "run_paused"),
        ("▶", "cyan", "run_resumed"),
        ("!", "yellow", "policy_decision"),
        ("■", "yellow", "run_cancel_requested"),
        ("✔", "bold green", "run_done"),
        ("✘", "bold red", "run_failed"),
        ("■", "bold yellow", "run_cancelled"),
    )
    for kind in kinds.split()
}
_MARGIN: Final = 11
"""Columns before flowing text."""
_PARTS: Final = re.compile(r"\n|[^\S\n]+|\S+")
_FAILED_STYLE: Final = ("✗", "red")
FINAL_STATUS: Final = {"run_done": "done", "run_failed": "failed", "run_cancelled": "cancelled"}


def _style(kind: str) -> tuple[str, str]:
    found = EVENT_STYLE.get(kind)
    return found or (_FAILED_STYLE if kind.endswith("_failed") else ("·", ""))


class EventPrinter:
    """Prints the events of one run."""

    def __init__(self, screen: Console) -> None:
        """Print on ``screen``."""
        self._screen = screen
        self._started: datetime | None = None
        self._latest: datetime | None = None
        self._flowing = ""
        self._column = 0

    def show(self, event: ClientEvent) -> None:
        """Print one event."""
        if event.type is EventType.AGENT_STREAM_DELTA:
            self._flow(event.step_id or "?", str(event.data.get("text", "")))
            return
        self.close()
        sign, style = _style(event.type)
        line = Text()
        line.append(f"{self._offset(event.at):>8} ", style="dim")
        line.append(f"{sign} {event.type:<21}", style=style)
        if event.step_id:
            line.append(f" {event.step_id}", style="dim")
        line.append(f" {describe(event.type, event.data)}")
        self._screen.print(line)

    def close(self) -> None:
        """End a line of flowing text."""
        if self._flowing:
            self._screen.print()
            self._flowing = ""

    def _flow(self, step_id: str, text: str) -> None:
        if self._flowing != step_id:
            self.close()
            self._begin_line()
            self._flowing = step_id
        for part in _PARTS.findall(text):
            full = self._column + cell_len(part) > self._screen.width
            if part == "\n" or (full and self._column > _MARGIN):
                self._screen.print()
                self._begin_line()
                if part.isspace():
                    continue
            self._screen.print(Text(part, style="italic"), end="")
            self._column += cell_len(part)

    def _begin_line(self) -> None:
        self._screen.print(Text(f"{'':>8} ┊ ", style="dim"), end="")
        self._column = _MARGIN

    def _offset(self, at: datetime | None) -> str:
        if at is None:
            return ""
        self._started = self._started or at
        # Events are in the order of the log; the clocks of two processes differ a little.
        self._latest = max(at, self._latest or at)
        return f"{(self._latest - self._started).total_seconds():.3f}"


def follow_run(
    client: Client, run_id: str, *, after: int = 0, limit: int | None = None, as_json: bool = False
) -> str:
    """Print a run's events while they happen; return its final status, ``running`` at the limit.

    Args:
        client: The gateway.
        run_id: The run.
        after: Id of an event; only later ones are printed.
        limit: Stop after this many events; pieces of text do not count.
        as_json: Print one JSON object per line.

    Raises:
        CommandError: The stream ended before the run.
        Exit: Ctrl-C was pressed.
    """
    printer, seen = EventPrinter(console()), 0
    try:
        for event in client.follow(run_id, after=after):
            if as_json:
                print_json(event.model_dump(mode="json", exclude_none=True), pretty=False)
            else:
                printer.show(event)
            if event.type in FINAL_STATUS:
                return FINAL_STATUS[event.type]
            seen += event.type is not EventType.AGENT_STREAM_DELTA
            if limit is not None and seen >= limit:
                return "running"
    except KeyboardInterrupt:
        printer.close()
        raise interrupted(run_id) from None
    finally:
        printer.close()
    raise CommandError(f"the event stream of {run_id} ended before the run did")


def interrupted(run_id: str) -> typer.Exit:
    """Return the exit after Ctrl-C; standard error shows how to follow or cancel the run."""
    typer.echo(
        f"\nThe run continues. Follow it: penstock runs tail {run_id}\n"
        f"Cancel it: penstock runs cancel {run_id}",
        err=True,
    )
    return typer.Exit(INTERRUPTED)


def exit_code(status: str) -> int:
    """Return the exit code for a run that was followed or waited for."""
    return 0 if status == "done" else FAILED


def describe(kind: str, data: Mapping[str, Any]) -> str:
    """Return the essence of an event in a few words."""
    name = str(data.get("name") or data.get("tool") or "")
    error = data.get("error")
    if isinstance(error, Mapping):
        return f"{name} {error.get('code', '')}: {error.get('message', '')}".strip()
    match kind:
        case "run_started":
            return f"{name} v{data.get('version')} ({data.get('kind')})"
        case "user_input":
            return compact(data.get("input"))
        case "tool_call_started" | "tool_call_created" | "approval_created":
            asked = data.get("arguments")
            call = name if asked is None else f"{name}({_arguments(asked)})"
            return f"{call} {data.get('message') or ''}".strip()
        case "agent_invoke_done":
            return f"{name} {_action(data.get('output'))}{_cost(data.get('usage'))}"
        case "policy_decision":
            return f"{name} {data.get('decision')}: {data.get('reason')}"
        case "queue_unserved":
            queue, steps = data.get("queue"), data.get("steps")
            return f"no runner serves queue {queue}; waiting steps: {steps}"
        case "step_waiting":
            return f"until {moment(str(data.get('due_at')))}"
        case "run_cancel_requested":
            return str(data.get("reason") or "")
        case "signal_received":
            return f"{name} {compact(data.get('payload'))}"
        case _:
            return _describe_record(kind, name, data)


def _describe_record(kind: str, name: str, data: Mapping[str, Any]) -> str:
    """As ``describe``, for decisions of the engine and its pending requests."""
    match kind:
        case "wait_started":
            return f"{name} until {moment(data.get('due_at'))}" if data.get("due_at") else name
        case "approval_decision" | "resolution_decision" | "tool_result_received":
            answer = data.get("decision") or data.get("action") or data.get("status")
            by = f"by {data['by']}" if data.get("by") else ""
            return " ".join(str(part) for part in (name, answer, by, data.get("reason")) if part)
        case "branch_taken":
            return str(data.get("choice") or "none of its cases")
        case "map_started":
            return f"{data.get('count', 0)} items"
        case "child_run_started":
            return f"{name} {data.get('child_run_id', '')}".strip()
        case "run_paused" | "run_resumed":
            return str(data.get("reason") or "")
        case "phase_ended" | "node_skipped":
            return str(data.get("status") or "")
        case _:
            output = data.get("output")
            return f"{name} {'→ ' + compact(output) if output is not None else ''}".strip()


def _arguments(arguments: Any) -> str:
    if not isinstance(arguments, Mapping):
        return compact(arguments)
    return ", ".join(f"{name}={compact(value, 80)}" for name, value in arguments.items())


def _action(output: Any) -> str:
    """Return the action that ended a turn; any other output as it is."""
    if not isinstance(output, Mapping):
        return f"→ {compact(output)}"
    if output.get("action") == "use_tools":
        return "→ calls " + ", ".join(str(call.get("name")) for call in output.get("calls") or ())
    if output.get("action") == "respond":
        answer = output.get("text") or output.get("output")
        return f"→ {compact(answer)}"
    return f"→ {compact(output)}"


def _cost(usage: Any) -> str:
    if not isinstance(usage, Mapping):
        return ""
    tokens = f"{usage.get('input_tokens', 0)}+{usage.get('output_tokens', 0)} tokens"
    price = "unknown price" if usage.get("unknown_price") else f"${usage.get('cost_usd', 0):.6f}"
    return f"  [{tokens}, {price}]"
