"""How runs look in a terminal: events and facts in colour, lists as tables, JSON where asked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

STATUS_STYLE: Final = {
    "created": "dim",
    "running": "cyan",
    "done": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "succeeded": "green",
    "planned": "dim",
    "scheduled": "cyan",
    "waiting": "yellow",
    "paused": "yellow",
    "stopped": "dim",
    "unknown": "bold red",
    "open": "yellow",
    "approved": "green",
    "rejected": "bold red",
    "expired": "red",
    "closed": "dim",
    "skipped": "dim",
    "live": "green",
    "suspect": "yellow",
    "draining": "yellow",
    "lost": "bold red",
}

EVENT_STYLE: Final = {
    "run_started": ("▶", "bold cyan"),
    "user_input": ("»", "magenta"),
    "agent_invoke_started": ("○", "cyan"),
    "agent_invoke_done": ("●", "green"),
    "agent_invoke_failed": ("✗", "red"),
    "tool_call_started": ("◇", "blue"),
    "tool_call_done": ("◆", "green"),
    "tool_call_failed": ("✗", "red"),
    "tool_call_unknown": ("?", "bold red"),
    "tool_call_created": ("◇", "magenta"),
    "tool_result_received": ("→", "magenta"),
    "approval_created": ("?", "yellow"),
    "approval_decision": ("→", "magenta"),
    "approval_expired": ("✗", "red"),
    "resolution_created": ("?", "yellow"),
    "resolution_decision": ("→", "magenta"),
    "wait_started": ("…", "yellow"),
    "wait_ended": ("…", "green"),
    "branch_taken": ("⑂", "cyan"),
    "map_started": ("○", "cyan"),
    "node_done": ("●", "green"),
    "node_failed": ("✗", "red"),
    "node_skipped": ("·", "dim"),
    "phase_ended": ("·", "dim"),
    "child_run_started": ("▷", "cyan"),
    "child_run_done": ("▶", "green"),
    "child_run_failed": ("✗", "red"),
    "message_sent": ("→", "blue"),
    "message_delivered": ("→", "green"),
    "message_failed": ("✗", "red"),
    "run_admitted": ("→", "cyan"),
    "run_paused": ("‖", "yellow"),
    "run_resumed": ("▶", "cyan"),
    "policy_decision": ("!", "yellow"),
    "step_waiting": ("…", "yellow"),
    "signal_received": ("→", "magenta"),
    "run_cancel_requested": ("■", "yellow"),
    "run_done": ("✔", "bold green"),
    "run_failed": ("✘", "bold red"),
    "run_cancelled": ("■", "bold yellow"),
}

DELTA: Final = "agent_stream_delta"
FINAL_STATUS: Final = {"run_done": "done", "run_failed": "failed", "run_cancelled": "cancelled"}
_WIDTH: Final = 400
_PIPE_WIDTH: Final = 160


def console() -> Console:
    """Return a console on standard output; colours only where a terminal or FORCE_COLOR is."""
    # In a pipe lines are not cut to the 80 columns that nobody there has.
    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(highlight=False, soft_wrap=True, width=wide)


def print_json(value: Any, *, pretty: bool = True) -> None:
    """Print a value as JSON, on one line unless ``pretty``."""
    indent = 2 if pretty else None
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
    sys.stdout.flush()


def compact(value: Any, width: int = _WIDTH) -> str:
    """Write a value on one line: text as it is, anything else as JSON, cut at ``width``."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def status_text(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status, style=STATUS_STYLE.get(status, ""))


def moment(value: str | None) -> str:
    """Write an ISO time as local time of day, with the date where it is another day."""
    if not value:
        return ""
    at = datetime.fromisoformat(value).astimezone()
    today = datetime.now(at.tzinfo).date()
    return at.strftime("%H:%M:%S" if at.date() == today else "%Y-%m-%d %H:%M")


def seconds_between(start: str | None, end: str | None) -> str:
    """Write the time between two ISO times in seconds."""
    if not start or not end:
        return ""
    passed = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    return f"{passed.total_seconds():.2f} s"


class EventPrinter:
    """Prints the events of one run as they come, pieces of text as they flow."""

    def __init__(self, screen: Console) -> None:
        """Print on ``screen``."""
        self._screen = screen
        self._started: datetime | None = None
        self._flowing = ""

    def show(self, event: Mapping[str, Any]) -> None:
        """Print one event (a ``ClientEvent`` as JSON)."""
        kind, data = str(event["type"]), event.get("data") or {}
        if kind == DELTA:
            self._flow(str(event.get("step_id") or ""), str(data.get("text", "")))
            return
        self.close()
        sign, style = EVENT_STYLE.get(kind, ("·", ""))
        line = Text()
        line.append(f"{self._offset(event.get('at')):>8} ", style="dim")
        line.append(f"{sign} {kind:<21}", style=style)
        if event.get("step_id"):
            line.append(f" {event['step_id']}", style="dim")
        line.append(f" {describe(kind, data)}")
        self._screen.print(line)

    def close(self) -> None:
        """End a line of flowing text."""
        if self._flowing:
            self._screen.print()
            self._flowing = ""

    def _flow(self, step_id: str, text: str) -> None:
        if self._flowing != step_id:
            self.close()
            self._screen.print(Text(f"{'':>8} ┊ ", style="dim"), end="")
            self._flowing = step_id or "?"
        self._screen.print(Text(text.replace("\n", f"\n{'':>8} ┊ "), style="italic"), end="")

    def _offset(self, at: str | None) -> str:
        if not at:
            return ""
        now = datetime.fromisoformat(at)
        if self._started is None:
            self._started = now
        return f"{(now - self._started).total_seconds():.3f}"


def describe(kind: str, data: Mapping[str, Any]) -> str:
    """Say in a few words what an event is about."""
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
        case "step_waiting":
            return f"until {moment(str(data.get('due_at')))}"
        case "run_cancel_requested":
            return str(data.get("reason") or "")
        case "signal_received":
            return f"{name} {compact(data.get('payload'))}"
        case _:
            return _describe_record(kind, name, data)


def _describe_record(kind: str, name: str, data: Mapping[str, Any]) -> str:
    """Say what the engine decided, or what it asks of the world outside."""
    match kind:
        case "wait_started":
            return f"{name} until {moment(data.get('due_at'))}" if data.get("due_at") else name
        case "approval_decision" | "resolution_decision" | "tool_result_received":
            said = data.get("decision") or data.get("action") or data.get("status")
            by = f"by {data['by']}" if data.get("by") else ""
            return " ".join(str(part) for part in (name, said, by, data.get("reason")) if part)
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
    """Say what a turn ended with; an output that is no action is shown as it is."""
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


def table(columns: tuple[str, ...], rows: Iterable[Iterable[str | Text]]) -> Table:
    """Return a plain table; where it is too wide, its last column gives way."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns[:-1]:
        shown.add_column(column, no_wrap=True)
    shown.add_column(columns[-1], overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown
