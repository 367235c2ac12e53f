import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.installation import EXAMPLES, Installation
from tests.support.waiting import eventually

RUN_ID = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b")
GROWTH = '{"principal": 1000, "rate": 2, "years": 5}'

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def penstock(installation: Installation) -> Command:
    """Run the command line against the stack."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")
    }

    def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "penstock.cli.app"]
        return subprocess.run(
            [*command, "--data-dir", str(installation.data_dir), *arguments],
            capture_output=True,
            text=True,
            input=text,
            check=False,
            timeout=120,
            env=environment,
        )

    return run


def test_apply_of_the_examples_again_changes_nothing(penstock: Command) -> None:
    shown = penstock("apply", "-f", str(EXAMPLES))
    assert shown.returncode == 0, shown.stderr
    assert "created" not in shown.stdout
    assert "updated" not in shown.stdout
    assert shown.stdout.count("unchanged") == 9


def test_apply_of_a_wrong_document_names_file_field_and_what_is_allowed(
    penstock: Command, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.yaml"
    head = "apiVersion: penstock/v1\nkind: Agent\nmetadata: {name: wrong}\n"
    file.write_text(f"{head}spec: {{model: scripted/x, modle: y, script: {{turns: [{{}}]}}}}\n")
    shown = penstock("apply", "-f", str(file))
    assert shown.returncode == 2
    assert f"{file}#1: spec.modle: there is no field 'modle' here" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_invoke_followed_shows_the_events_of_the_run(penstock: Command) -> None:
    shown = penstock("invoke", "growth-report", "--input", GROWTH, "--follow")
    assert shown.returncode == 0, shown.stderr
    kinds = [line.split()[2] for line in shown.stdout.splitlines() if "┊" not in line]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_done"
    assert "32000" in shown.stdout


def test_invoke_awaited_prints_the_output_and_fails_where_the_run_does(penstock: Command) -> None:
    shown = penstock("invoke", "growth-report", "-i", GROWTH, "--wait", "20", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["output"]["value"] == 32000
    failing = penstock("invoke", "growth-report", "-i", "{}", "--wait", "20")
    assert failing.returncode == 1


def test_runs_shown_tailed_and_replayed_tell_the_same(penstock: Command) -> None:
    started = penstock("invoke", "growth-report", "-i", GROWTH, "--wait", "20")
    run_id = RUN_ID.findall(started.stdout)[0]
    shown = penstock("runs", "show", run_id, "--json")
    assert json.loads(shown.stdout)["status"] == "done"
    assert run_id in penstock("runs", "show", run_id).stdout
    tailed = penstock("runs", "tail", run_id, "--json")
    assert tailed.returncode == 0, tailed.stderr
    events = [json.loads(line) for line in tailed.stdout.splitlines()]
    assert events[-1]["type"] == "run_done"
    replayed = penstock("runs", "fold", run_id, "--json")
    frames = [json.loads(line) for line in replayed.stdout.splitlines()]
    assert [frame["seq"] for frame in frames] == sorted({e["id"] for e in events if "id" in e})
    assert frames[0]["state"]["status"] == "created"
    assert frames[-1]["state"]["status"] == "done"
    assert frames[-1]["state"]["steps"]["value"] == {"status": "succeeded", "attempt": 1}


def test_replay_until_a_sequence_shows_the_state_at_that_time(penstock: Command) -> None:
    started = penstock("invoke", "growth-report", "-i", GROWTH, "--wait", "20")
    run_id = RUN_ID.findall(started.stdout)[0]
    frames = penstock("runs", "fold", run_id, "--json").stdout.splitlines()
    second = json.loads(frames[1])["seq"]
    shown = penstock("runs", "fold", run_id, "--until", str(second))
    view = json.loads(shown.stdout[shown.stdout.index("\n\n") :])
    assert view["status"] == "running"
    assert view["last_seq"] == second


def test_tail_of_a_subject_shows_what_matches(
    installation: Installation, penstock: Command
) -> None:
    shown: list[subprocess.CompletedProcess[str]] = []
    pattern = "run.default.*.*.out.*.end"

    def tail() -> None:
        shown.append(penstock("runs", "tail", "--subject", pattern, "-n", "1", "--json"))

    tailing = threading.Thread(target=tail)
    tailing.start()
    # Whether the other process listens yet cannot be seen from here: run until it has seen one.
    for _ in range(100):
        installation.start("growth-report", json.loads(GROWTH), wait=30)
        tailing.join(0.05)
        if not tailing.is_alive():
            break
    tailing.join(30)
    fact = json.loads(shown[0].stdout)
    assert fact["subject"].endswith(".end")
    assert fact["body"]["type"] == "run.ended"
    assert fact["seq"] > 0


async def test_runs_listed_after_they_ended(penstock: Command) -> None:
    run_id = RUN_ID.findall(penstock("invoke", "growth-report", "-i", GROWTH).stdout)[0]
    penstock("runs", "tail", run_id)
    await eventually(lambda: f"{run_id}  done" in penstock("runs", "list", "-n", "5").stdout)


def test_runs_unknown_are_said_to_be_so(penstock: Command) -> None:
    unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    for command in (("show",), ("tail",), ("cancel",), ("fold",), ("replay",)):
        shown = penstock("runs", *command, unknown)
        assert shown.returncode == 2, shown
        assert shown.stderr.startswith("error: ")
        assert len(shown.stderr.splitlines()) <= 2


def test_runners_are_listed_with_what_they_can_do(penstock: Command) -> None:
    shown = penstock("runners")
    assert "tool.builtin" in shown.stdout
    assert "agent.default" in shown.stdout
    assert "multiply" in shown.stdout


def test_keys_created_are_listed_and_revoked(penstock: Command) -> None:
    created = penstock("keys", "create", "--name", "laptop")
    assert created.returncode == 0, created.stderr
    key_id = created.stdout.split()[0]
    listed = json.loads(penstock("keys", "list", "--json").stdout)
    assert {key["key_id"]: key["name"] for key in listed}[key_id] == "laptop"
    assert penstock("keys", "revoke", key_id).returncode == 0
    assert key_id not in penstock("keys", "list").stdout


def test_services_listed_name_every_process(penstock: Command) -> None:
    shown = penstock("services", "list")
    for name in ("supervisor", "nats-server", "gateway", "engine", "projector"):
        assert name in shown.stdout


def test_doctor_of_a_healthy_stack_finds_nothing_wrong(penstock: Command) -> None:
    shown = penstock("doctor", "--json")
    findings = json.loads(shown.stdout)
    failed = [finding for finding in findings if finding["level"] == "fail"]
    assert not failed
    assert shown.returncode == 0
    assert {"gateway", "bus", "durability", "append", "streams", "consumers", "leases"} <= {
        finding["area"] for finding in findings
    }


def test_doctor_of_a_stack_with_a_frozen_service_names_it(
    installation: Installation, penstock: Command
) -> None:
    frozen = installation.stack.pid("tool-runner")
    os.kill(frozen, signal.SIGSTOP)
    try:
        shown = penstock("doctor", "--json")
    finally:
        os.kill(frozen, signal.SIGCONT)
    failed = [finding for finding in json.loads(shown.stdout) if finding["level"] == "fail"]
    assert [finding["area"] for finding in failed] == ["tool-runner"]
    assert shown.returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "list"),
        ("runs", "show", "RUN"),
        ("runs", "tail", "RUN"),
        ("runs", "fold", "RUN"),
        ("definitions", "list"),
        ("runners",),
        ("services", "list"),
        ("doctor",),
        ("observability", "status"),
        ("observability", "profile-report"),
    ],
)
def test_output_on_a_terminal_of_80_columns_fits(
    installation: Installation, penstock: Command, arguments: tuple[str, ...]
) -> None:
    run_id = RUN_ID.findall(
        penstock("invoke", "growth-report", "-i", GROWTH, "--wait", "20").stdout
    )[0]
    command = [sys.executable, "-m", "penstock.cli.app", "--data-dir", str(installation.data_dir)]
    command += [part.replace("RUN", run_id) for part in arguments]

    shown = on_terminal(command, columns=80)

    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    assert len(lines) > 2
    assert [line for line in lines if len(line) > 80] == []


def on_terminal(command: list[str], *, columns: int) -> str:
    """Run a command on a pseudo-terminal; return what it prints."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    running = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    printed = b""
    try:
        while part := os.read(ours, 65536):
            printed += part
    except OSError as error:  # the other side was closed
        if error.errno != errno.EIO:
            raise
    os.close(ours)
    assert running.wait(60) == 0, printed
    return printed.decode()


def test_doctor_without_a_stack_fails(penstock: Command, tmp_path: Path) -> None:
    shown = penstock("--data-dir", str(tmp_path), "--url", "http://127.0.0.1:9", "doctor")
    assert shown.returncode == 1
    assert "no answer at http://127.0.0.1:9/health" in shown.stdout
