import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import Result

from penstock.cli.app import COMMANDS, Commands, app
from penstock.cli.failure import CommandError
from penstock.cli.lazy import Entry
from penstock.contracts.errors import TransientError


def is_group(entry: Entry) -> bool:
    return entry.target.partition(":")[2] in ("app", "aliases", "services")


HEAVY = (
    "aiosqlite",
    "asyncio",
    "fastapi",
    "faststream",
    "httpx",
    "litellm",
    "nats",
    "pydantic",
    "pygments",
    "markdown_it",
    "rich",
    "sqlalchemy",
    "uvicorn",
    "yaml",
)


def test_app_imported_loads_nothing_heavy() -> None:
    probe = f"import sys, penstock.cli.app; print(sorted(set({HEAVY}) & set(sys.modules)))"
    shown = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    probe = (
        "import sys; from penstock.cli.app import app\n"
        f"try: app({[*command.split(), '--help']})\n"
        f"except SystemExit: print('loaded', sorted(set({HEAVY}) & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    # Typer itself imports pydantic to parse the options before a command.
    assert shown.stdout.splitlines()[-1] in ("loaded []", "loaded ['pydantic']")


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_imported_when_called_and_has_the_help_of_the_table(
    run: Callable[..., Result], name: str
) -> None:
    shown = run(name, "--help")
    assert shown.exit_code == 0, shown.output
    assert COMMANDS[name].help in " ".join(shown.stdout.split())
    assert f"Usage: penstock {name}" in shown.stdout
    assert ("Commands:" in shown.stdout) == is_group(COMMANDS[name])


@pytest.mark.parametrize(
    "command",
    [
        "dev",
        "apply",
        "invoke",
        "runs",
        "keys",
        "runners",
        "doctor",
        "version",
        "signal",
        "approvals",
    ],
)
def test_app_help_names_command(run: Callable[..., Result], command: str) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert f"  {command}" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "show",
        "tail",
        "replay",
        "retry",
        "fork",
        "fold",
        "export",
        "import",
        "verify",
        "cancel",
        "pause",
        "resume",
        "cancel-many",
        "tool-result",
        "resolve",
    ],
)
def test_runs_help_names_command(run: Callable[..., Result], command: str) -> None:
    assert f"  {command}" in run("runs", "--help").stdout


@pytest.mark.parametrize("arguments", [(), ("runs",)])
def test_help_of_a_group_has_sections_and_whole_sentences(
    run: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    shown = run(*arguments, "--help", env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    assert "..." not in shown.partition("Commands:")[2]
    assert max(map(len, shown.splitlines())) <= 80
    headings = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    expected = ["Definitions:", "Runs:", "Operation:"]
    if arguments:
        expected = ["Control:", "Answers:", "Repetitions:", "Bundles:"]
    assert [one for one in headings if one not in ("Options:", "Commands:")] == expected


def test_version_printed_is_the_installed_one(run: Callable[..., Result]) -> None:
    assert run("version").stdout.startswith("penstock 0.")


@pytest.mark.parametrize("arguments", [(), ("RUN", "--subject", "run.>")])
def test_tail_without_one_source_is_misuse(
    run: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    result = run("runs", "tail", *arguments)
    assert result.exit_code == 2
    assert "either a run or --subject" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("runs", "list"), "no gateway at http://127.0.0.1:9"),
        (("--data-dir", "nowhere", "services", "list"), "no stack runs in"),
        (("dev", "--host", "0.0.0.0"), "without authentication"),
        (("runs", "fold", "nonsense"), "is not the id of a run"),
        (("apply", "-f", "missing.yaml"), "missing.yaml: No such file"),
    ],
)
def test_command_that_fails_says_one_line_and_no_trace(
    arguments: tuple[str, ...], words: str
) -> None:
    command = [sys.executable, "-m", "penstock.cli.app", *arguments]
    env = {"PENSTOCK_URL": "http://127.0.0.1:9"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert result.returncode in (1, 2)
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("apply", "-f", b"\xff\xe2\x98\x83.yaml"),
        ("apply", "-f", "/bin/sh"),
        ("invoke", b"\xff", "--input", "1"),
        ("invoke", "x", "--tag", b"a=\xff"),
        ("--api-key", "\u2603", "runs", "list"),
        ("--url", b"http://\xff", "runs", "list"),
        ("--data-dir", "/dev/null", "runs", "verify", "/"),
    ],
)
def test_command_shows_no_trace_whatever_the_arguments_and_the_terminal(
    arguments: tuple[str | bytes, ...], encoding: str
) -> None:
    command = [sys.executable, "-m", "penstock.cli.app", *arguments]
    env = {"PENSTOCK_URL": "http://127.0.0.1:9", "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, check=False, env=env)
    assert result.returncode in (1, 2)
    assert result.stderr.startswith(b"error: ")
    assert b"Traceback" not in result.stderr
    assert b"PENSTOCK_DEBUG" not in result.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("apply -f - <&-", "error: no documents in -"),
        ("invoke x --input @- <&-", "error: no gateway at"),
        ("runs list >&-", "error: no gateway at"),
        ("version >&- 2>&-", ""),
    ],
)
def test_command_whose_streams_are_closed_shows_no_trace(command: str, words: str) -> None:
    result = subprocess.run(
        f"{sys.executable} -m penstock.cli.app {command}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env={"PENSTOCK_URL": "http://127.0.0.1:9"},
    )
    assert result.stderr.startswith(words)
    assert len(result.stderr.splitlines()) == bool(words)


def test_error_that_no_command_expects_is_one_line() -> None:
    code = (
        "from penstock.cli import app\n"
        "def fail(): raise KeyError('\\x1b[2J\\ud800')\n"
        "app.version = app.app.command('version')(fail)\n"
        "app.main()"
    )
    command = [sys.executable, "-c", code, "version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: KeyError: ")
    assert len(result.stderr.splitlines()) == 1


def test_sink_without_a_bus_is_one_line(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise TransientError("bus_unreachable", "no nats-server at nats://127.0.0.1:1")

    monkeypatch.setattr("penstock.sinks.process.run_mlflow_sink", fail)
    error = run("sink", "mlflow").exception
    assert isinstance(error, CommandError)
    assert error.message == "no nats-server at nats://127.0.0.1:1 [bus_unreachable]"


def test_full_disk_behind_standard_output_is_one_line() -> None:
    command = f"{sys.executable} -m penstock.cli.app version > /dev/full"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "error: [Errno 28]" in result.stderr
    assert "Traceback" not in result.stderr


def every_command() -> Iterator[tuple[str, Any]]:
    group = get_command(app)
    assert isinstance(group, Commands)
    for name in COMMANDS:
        loaded = group.load(name)
        members: dict[str, Any] = getattr(loaded, "commands", {})
        yield from ((f"{name} {member}", one) for member, one in members.items())
        if not members:
            yield name, loaded


def test_every_command_that_ends_by_itself_can_print_json() -> None:
    without = {
        name
        for name, command in every_command()
        if not any("--json" in parameter.opts for parameter in command.params)
    }

    assert without == {"dev", "services run", "sink mlflow"}


def test_every_run_on_a_command_line_may_be_given_by_its_beginning() -> None:
    runs = {
        f"{name} {parameter.name}": parameter.callback is not None
        for name, command in every_command()
        for parameter in command.params
        if parameter.metavar == "RUN" or parameter.name in ("run_id", "parent", "root", "sender")
    }

    # With --correlation or --session, their first argument is the name of the event.
    assert {name for name, known in runs.items() if not known} == {
        "signal run_id",
        "runs message run_id",
    }
    assert len(runs) > 25
