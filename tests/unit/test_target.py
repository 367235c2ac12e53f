import json
import os
from pathlib import Path

import pytest

from penstock.target import DEFAULT_URL, find_target


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PENSTOCK_URL", "PENSTOCK_API_KEY", "PENSTOCK_DATA_DIR", "PENSTOCK_NATS_URL"):
        monkeypatch.delenv(name, raising=False)


def write_stack(folder: Path, pid: int) -> None:
    folder.mkdir()
    state = {
        "supervisor_pid": pid,
        "ready_seconds": 1.5,
        "url": "http://127.0.0.1:1234",
        "nats_url": "nats://127.0.0.1:5678",
        "monitor_url": "http://127.0.0.1:9999",
        "data_dir": str(folder),
        "durable": False,
        "auth": False,
        "processes": {"nats-server": {"pid": pid, "restarts": 0, "of_a_later_version": 1}},
        "of_a_later_version": True,
    }
    (folder / "stack.json").write_text(json.dumps(state))


def test_target_with_nothing_given_is_the_default() -> None:
    found = find_target()
    assert found.url == DEFAULT_URL
    assert found.api_key is None
    assert found.tenant == "default"


def test_target_with_living_stack_in_the_usual_folder_is_that(tmp_path: Path) -> None:
    write_stack(tmp_path / ".penstock", os.getpid())
    found = find_target()
    assert found.url == "http://127.0.0.1:1234"
    assert found.nats_url == "nats://127.0.0.1:5678"
    assert found.monitor_url == "http://127.0.0.1:9999"


def test_target_with_dead_stack_ignores_it(tmp_path: Path) -> None:
    write_stack(tmp_path / ".penstock", 2**22 + 1)
    assert find_target().url == DEFAULT_URL


def test_target_variable_wins_over_stack_in_the_usual_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path / ".penstock", os.getpid())
    monkeypatch.setenv("PENSTOCK_URL", "https://example.test/")
    assert find_target().url == "https://example.test"


def test_target_named_folder_wins_over_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path / "mine", os.getpid())
    monkeypatch.setenv("PENSTOCK_URL", "https://example.test")
    assert find_target(data_dir="mine").url == "http://127.0.0.1:1234"


def test_target_option_wins_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stack(tmp_path / "mine", os.getpid())
    monkeypatch.setenv("PENSTOCK_API_KEY", "from-variable")
    found = find_target(url="http://other", data_dir="mine", api_key="given")
    assert (found.url, found.api_key) == ("http://other", "given")
