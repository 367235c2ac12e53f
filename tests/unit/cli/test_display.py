import io
import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import Result

from penstock.cli import display
from penstock.cli.app import main
from penstock.cli.display import compact, console, print_json, seconds_between, table
from penstock.cli.events import EventPrinter, describe
from penstock.cli.failure import CommandError, Finding, print_error
from penstock.runs.events import ClientEvent, EventType
from tests.unit.cli.conftest import AT, RUN


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


HOSTILE = "a\x1b[2J\x9b1m\x07\r\x7f\u202eb\u2028c\ud800\ufeff"
SHOWN = r"a\u001b[2J\u009b1m\u0007\u000d\u007f\u202eb\u2028c\ud800\ufeff"


def test_control_characters_of_foreign_text_are_shown_as_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console().print(HOSTILE)
    console().print(Text(HOSTILE, style="bold"))
    console().print(table(("id", "text"), [["1", HOSTILE]]))
    print_json({"text": HOSTILE})
    print_error(CommandError(HOSTILE, findings=(Finding(HOSTILE, "wrong", HOSTILE),)))
    printed = capsys.readouterr()

    assert printed.out.count(SHOWN) == 2
    assert Text(HOSTILE).plain not in printed.out
    assert json.loads(printed.out[printed.out.index("{") :]) == {"text": HOSTILE}
    assert printed.err == f"error: {SHOWN}\n  {SHOWN}: wrong (allowed: {SHOWN})\n"
    assert re.search("[^\\n -~]", printed.out + printed.err) is None


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


@pytest.mark.parametrize("output", ["[/]", "[red]no[/red]", ":smile:", "[0]"])
@pytest.mark.parametrize("columns", ["1", "80", "-5", "wide"])
def test_output_of_a_run_is_printed_as_it_is(
    run: Callable[..., Result],
    gateway: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = {**RUN, "status": "done", "ended_at": AT, "output": output}
    for arguments, reply in (
        (("runs", "list"), {"items": [done]}),
        (("invoke", "helper", "--wait", "1"), done),
        (("runs", "show", RUN["run_id"]), done),
    ):
        gateway(lambda _, reply=reply: httpx.Response(200, json=reply))
        shown = run(*arguments)
        assert shown.exception is None, (arguments, shown.exception)
        assert output in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("invoke", "helper", "--wait", "1"), "caf? ?"),
        (("invoke", "helper", "--wait", "1", "--json"), r"caf\u00e9 \u2713"),
    ],
)
def test_output_that_the_terminal_cannot_encode_is_replaced_or_escaped(
    gateway: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    gateway(
        lambda _: httpx.Response(200, json={**RUN, "status": "done", "output": "caf\xe9 \u2713"})
    )
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setattr(sys, "argv", ["penstock", "--url", "http://gateway.test", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert ended.value.code in (None, 0)
    assert expected in written.getvalue().decode("ascii")


NAME = "a-workflow-with-a-long-name"
APPROVAL: dict[str, Any] = {
    "run_id": RUN["run_id"], "record_id": "pay-the-supplier-a", "step_id": "pay-the-supplier",
    "run_name": NAME, "status": "open", "tool": "payments-transfer", "role": "operator",
    "arguments": {"amount": 250, "iban": "DE02120300000000202051"}, "digest": "d" * 64,
    "message": "Transfer 250 to the supplier of the order?", "asked_at": AT, "expires_at": AT,
}  # fmt: skip
SHOWN_STEP = {
    "step_id": "pay-the-supplier", "node_id": "pay-the-supplier", "kind": "tool",
    "queue": "payments", "name": "payments-transfer", "status": "succeeded", "attempt": 1,
    "started_at": AT, "ended_at": AT,
    "output": {"reference": "transfer-of-the-day-with-a-long-reference-0001"},
}  # fmt: skip
WIDE_RUN = {**RUN, "name": NAME, "status": "done", "ended_at": AT, "steps": [SHOWN_STEP],
            "input": "word " * 60, "output": {"text": "x" * 90}}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "reply", "wanted"),
    [
        (("runs", "list"), {"items": [WIDE_RUN]}, [NAME, "http", "0.00 s"]),
        (
            ("runs", "show", RUN["run_id"]),
            WIDE_RUN,
            ["payments-transfer", "transfer-of-the-day-with-a-long-reference-0001", "x" * 90],
        ),
        (
            ("approvals", "list"),
            {"items": [APPROVAL]},
            ["pay-the-supplier-a", "operator", "DE02120300000000202051", "of the order?"],
        ),
    ],
)
def test_output_fits_the_terminal_and_is_complete_without_one(
    run: Callable[..., Result],
    gateway: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    reply: dict[str, Any],
    wanted: list[str],
) -> None:
    gateway(lambda _: httpx.Response(200, json=reply))
    monkeypatch.setattr(display, "terminal_columns", lambda: 80)
    narrow = run(*arguments)
    assert narrow.exit_code == 0, narrow.output
    assert max(map(len, narrow.stdout.splitlines())) <= 80
    letters = "".join(narrow.stdout.split())
    assert [one for one in wanted if one.replace(" ", "") not in letters] == []

    monkeypatch.setattr(display, "terminal_columns", lambda: None)
    whole = run(*arguments).stdout
    assert [one for one in wanted if one not in whole] == []
    row = next(line for line in whole.splitlines() if wanted[0] in line)
    assert arguments[1] == "show" or all(one in row for one in wanted)


def test_row_that_is_too_wide_continues_below_with_the_names_of_its_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "terminal_columns", lambda: 60)
    rows = [["a" * 26, "done", "b" * 40, "", "it ended"], ["c", "failed", "d", "5 s", ""]]

    console().print(table(("run", "status", "name", "took", "outcome"), rows))

    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "run                         status",
        "aaaaaaaaaaaaaaaaaaaaaaaaaa  done",
        f"    name {'b' * 40}",
        "    outcome it ended",
        "c                           failed",
        "    name d  took 5 s",
    ]


def test_flowing_text_is_wrapped_at_the_terminal_and_keeps_its_lines() -> None:
    output = io.StringIO()
    printer = EventPrinter(Console(file=output, width=30))
    for text in ("one two ", "three four five\n", "  six"):
        printer.show(
            ClientEvent(
                type=EventType.AGENT_STREAM_DELTA, run_id="R", step_id="a-1", data={"text": text}
            )
        )
    printer.close()

    lines = [line.partition("┊ ")[2].rstrip() for line in output.getvalue().splitlines()]
    assert lines == ["one two three four", "five", "  six"]


def test_times_of_events_never_go_back() -> None:
    output = io.StringIO()
    printer = EventPrinter(Console(file=output, width=200))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for seconds in (0.0, 2.0, 1.5, 3.0):
        at = start + timedelta(seconds=seconds)
        printer.show(ClientEvent(type=EventType.NODE_DONE, run_id="R", at=at))

    assert [line.split()[0] for line in output.getvalue().splitlines()] == [
        "0.000",
        "2.000",
        "2.000",
        "3.000",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_error_is_wrapped_at_the_terminal_and_whole_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    finding = Finding("spec.model", "is the name of no model", "p" * 50)
    error = CommandError("the document has a fault that a line describes", findings=(finding,))
    terminal, file = Terminal(), io.StringIO()

    print_error(error, terminal)
    print_error(error, file)

    assert terminal.getvalue().splitlines() == [
        "error: the document has a fault that a",
        "    line describes",
        "  spec.model: is the name of no model",
        "    (allowed:",
        f"    {'p' * 50})",
    ]
    assert file.getvalue().count("\n") == 2


def test_split_row_keeps_the_style_of_its_cells() -> None:
    output = io.StringIO()
    grid = table(("a", "b", "c"), [["x" * 30, "y" * 30, Text("done", style="green")]])

    Console(file=output, width=40, force_terminal=True, color_system="standard").print(grid)

    assert "\x1b[32mdone" in output.getvalue()
