"""Schedules on a whole stack: the example of the page, the command line, and a killed engine."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.cli.app import app
from penstock.contracts.schedules import schedule_run_id
from tests.support.installation import Installation
from tests.support.waiting import eventually

PAGE = Path(__file__).parents[2] / "docs/schedules.md"


def document(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "penstock/v1",
        "kind": "Schedule",
        "metadata": {"name": name},
        "spec": {"target": "growth-report", **spec},
    }


@pytest.fixture
def command(installation: Installation) -> Callable[..., str]:
    """Run a command line against the stack."""

    def run(*arguments: str) -> str:
        given = ["--data-dir", str(installation.data_dir), "schedules", *arguments]
        result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.fixture
def every_second(installation: Installation) -> Iterator[str]:
    """A schedule that starts a run each second while the test goes on."""
    name = "each-second"
    growth = {"principal": 1, "rate": 2, "years": 3}
    installation.apply(document(name, every="1s", input=growth, tags={"of": "test"}))
    yield name
    installation.client.delete(f"/v1/schedules/{name}")


def runs_of(installation: Installation, name: str) -> list[dict[str, Any]]:
    answer = installation.client.get(f"/v1/schedules/{name}/runs", params={"limit": 100})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def state_of(installation: Installation, name: str) -> dict[str, Any]:
    state: dict[str, Any] = installation.client.get(f"/v1/schedules/{name}/state").json()
    return state


async def test_example_of_the_page_is_applied_shown_and_started_by_hand(
    installation: Installation, command: Callable[..., str]
) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    installation.apply(text)

    assert "+02:00" in command("next", "morning-growth", "--after", "2026-06-01T00:00:00Z")
    assert "morning-growth" in command("list")
    run_id = command("trigger", "morning-growth").split()[0]

    await eventually(lambda: installation.get(run_id)["status"] == "done")
    run = installation.get(run_id)
    assert (run["trigger"], run["tags"]["schedule"]) == ("schedule", "morning-growth")
    assert run["tags"]["team"] == "finance"
    await eventually(lambda: run_id in command("show", "morning-growth"))

    command("pause", "morning-growth", "--reason", "no one reads it")
    assert "no one reads it" in command("list")
    assert "resumes" in command("resume", "morning-growth")


async def test_killed_engine_leaves_no_gap_and_no_double_run(
    installation: Installation, every_second: str
) -> None:
    await eventually(lambda: state_of(installation, every_second)["fired"] >= 2)
    os.kill(installation.stack.pid("engine"), signal.SIGKILL)
    before = state_of(installation, every_second)["fired"]
    await eventually(
        lambda: state_of(installation, every_second)["fired"] >= before + 12, within=60
    )

    state = state_of(installation, every_second)
    assert state["left_out"] == 0
    last = datetime.fromisoformat(state["last_tick"])
    expected = {
        schedule_run_id("default", every_second, last - timedelta(seconds=back))
        for back in range(state["fired"])
    }
    await eventually(
        lambda: {run["run_id"] for run in runs_of(installation, every_second)} >= expected,
        within=30,
    )
    first = min(expected, key=lambda run_id: installation.get(run_id)["created_at"])
    assert installation.get(first)["tags"] == {"of": "test", "schedule": every_second}
    await eventually(lambda: installation.get(first)["status"] == "done")


def test_document_with_faults_is_refused_with_all_of_them(installation: Installation) -> None:
    bad = document("bad", cron="61 * * * *", timezone="Europe/Berln", jitter="2h")
    answer = installation.client.post("/v1/apply", json={"documents": [bad]})
    assert answer.status_code == 422
    problem = answer.json()
    assert [error["path"].rpartition("spec.")[2] for error in problem["errors"]] == [
        "cron",
        "timezone",
        "jitter",
    ]
    assert "Europe/Berlin" in problem["errors"][1]["allowed"]
