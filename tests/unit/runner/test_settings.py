"""Where a runner finds the bus if no settings are given."""

import json
import os
from pathlib import Path

import pytest

from penstock.runner.settings import find_settings
from penstock.stack import StackState

STACK_URL = "nats://127.0.0.1:4333"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".penstock"
    folder.mkdir()
    return folder


def write_stack(folder: Path, supervisor_pid: int) -> None:
    state = StackState(
        supervisor_pid=supervisor_pid,
        ready_seconds=1.5,
        url="http://127.0.0.1:1",
        nats_url=STACK_URL,
        monitor_url="http://127.0.0.1:2",
        data_dir=str(folder),
        durable=False,
        auth=False,
        processes={},
    )
    (folder / "stack.json").write_text(json.dumps(state.to_json()))


def test_bus_of_the_running_stack_is_found(data_dir: Path) -> None:
    write_stack(data_dir, os.getpid())
    assert find_settings().nats_servers == [STACK_URL]


def test_variable_wins_over_the_stack(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stack(data_dir, os.getpid())
    monkeypatch.setenv("PENSTOCK_NATS_URL", "nats://127.0.0.1:4444")
    assert find_settings().nats_servers == ["nats://127.0.0.1:4444"]


def test_without_a_stack_the_default_address_holds(data_dir: Path) -> None:
    assert find_settings().nats_servers == ["nats://127.0.0.1:4222"]
    write_stack(data_dir, 2**22 + 1)
    assert find_settings().nats_servers == ["nats://127.0.0.1:4222"]
