import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from penstock.cli.display import compact, seconds_between
from penstock.cli.events import EventPrinter, describe
from penstock.runs.events import ClientEvent, EventType


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("two\nlines", "two lines"),
        ({"a": "ü"}, '{"a": "ü"}'),
        ("x" * 500, "x" * 399 + "…"),
    ],
)
def test_compact_value_is_one_line(value: Any, text: str) -> None:
    assert compact(value) == text


def test_seconds_between_two_times() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert seconds_between(start, start + timedelta(seconds=60.5)) == "60.50 s"
    assert seconds_between(start, None) == ""


@pytest.mark.parametrize("kind", list(EventType))
def test_describe_any_event_without_data_does_not_fail(kind: EventType) -> None:
    assert isinstance(describe(kind.value, {"due_at": "2026-01-01T00:00:00Z"}), str)


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        (
            "tool_call_started",
            {"name": "add", "arguments": {"a": 1, "b": "x"}},
            "add(a=1, b=x)",
        ),
        (
            "agent_invoke_done",
            {"name": "a", "output": {"action": "use_tools", "calls": [{"name": "add"}]}},
            "a → calls add",
        ),
        (
            "agent_invoke_done",
            {"name": "a", "output": {"action": "respond", "text": "hi"},
             "usage": {"input_tokens": 3, "output_tokens": 1, "unknown_price": True}},
            "a → hi  [3+1 tokens, unknown price]",
        ),
        ("tool_call_failed", {"name": "t", "error": {"code": "c", "message": "m"}}, "t c: m"),
        ("policy_decision", {"tool": "t", "decision": "blocked", "reason": "r"}, "t blocked: r"),
    ],
)  # fmt: skip
def test_describe_event_says_what_it_is_about(kind: str, data: dict[str, Any], text: str) -> None:
    assert describe(kind, data) == text


def test_printer_with_markup_in_text_prints_it_as_it_is() -> None:
    output = io.StringIO()
    printer = EventPrinter(Console(file=output, width=200))
    for kind, field, text in (
        (EventType.USER_INPUT, "input", "[red]no[/] [/]"),
        (EventType.AGENT_STREAM_DELTA, "text", "[/x]"),
    ):
        printer.show(ClientEvent(type=kind, run_id="R", step_id="a-1", data={field: text}))
    printer.close()
    assert "[red]no[/] [/]" in output.getvalue()
    assert "[/x]" in output.getvalue()
