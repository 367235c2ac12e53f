import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock.child import LOOPBACK, Child, Service, http_get
from penstock.stack import Stack, StackError, StackOptions, read_stack_file
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
FAKE = "tests.support.fake_service"


def options(data_dir: Path, *behaviours: str, **chosen: Any) -> StackOptions:
    services = tuple(
        Service(f"fake-{index}", FAKE, {"FAKE_BEHAVIOUR": behaviour, "PYTHONPATH": str(ROOT)})
        for index, behaviour in enumerate(behaviours or ("", ""))
    )
    return StackOptions(data_dir=str(data_dir), port=0, nats_port=0, services=services, **chosen)


@pytest.fixture
def create_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    with ExitStack() as opened:

        def create(*behaviours: str, name: str = "data", **chosen: Any) -> Stack:
            stack = Stack(options(tmp_path / name, *behaviours, **chosen))
            opened.callback(stack.stop)
            return stack

        yield create


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(stack: Stack) -> list[int]:
    return [stack.pid(name) for name in stack.state.processes]


def test_stack_with_two_services_becomes_ready_and_ends_clean(
    create_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = create_stack()
    stack.start()
    state = stack.state
    assert set(state.processes) == {"nats-server", "fake-0", "fake-1"}
    port = state.processes["fake-0"].metrics_port
    assert port is not None
    assert http_get(port, "/readyz")[0] == 200
    assert "is ready after" in stack.log_file.read_text()
    running = pids(stack)
    stack.stop()
    assert not any(alive(pid) for pid in running)
    assert read_stack_file(tmp_path / "data") is None


async def test_stack_service_killed_is_started_again(create_stack: Callable[..., Stack]) -> None:
    stack = create_stack()
    stack.start()
    first = stack.pid("fake-1")
    os.kill(first, signal.SIGKILL)

    def back() -> bool:
        process = stack.state.processes["fake-1"]
        return bool(process.ready) and process.restarts == 1 and process.pid != first

    await eventually(back)
    assert "fake-1 ended with SIGKILL" in stack.log_file.read_text()


async def test_service_whose_metrics_port_was_taken_gets_another() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        child = Child(Service("fake", FAKE), env, port)
        child.start(None)
        assert await eventually(child.died, within=30)
        child.start(None)
        try:
            await eventually(child.probe, within=30)
            assert child.metrics_port != port
        finally:
            assert child.process is not None
            child.process.kill()
            child.process.wait()


async def test_stack_nats_server_killed_is_started_again_on_its_port(
    create_stack: Callable[..., Stack],
) -> None:
    stack = create_stack()
    stack.start()
    url, first = stack.nats_url, stack.pid("nats-server")
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: stack.pid("nats-server") != first)
    assert stack.nats_url == url


async def test_stack_supervisor_killed_takes_all_children_with_it(
    create_stack: Callable[..., Stack],
) -> None:
    stack = create_stack()
    stack.start()
    running = pids(stack)
    assert all(alive(pid) for pid in running)
    stack.kill()
    await eventually(lambda: not any(alive(pid) for pid in running))


async def test_stack_start_interrupted_leaves_no_child(create_stack: Callable[..., Stack]) -> None:
    stack = create_stack("unready")
    with pytest.raises(StackError, match="not ready within"):
        stack.start(within=1.0)
    with pytest.raises(StackError, match="no stack runs"):
        stack.pid("fake-0")


def test_stack_service_that_cannot_start_ends_the_stack_with_its_last_words(
    create_stack: Callable[..., Stack],
) -> None:
    stack = create_stack("", "broken")
    with pytest.raises(StackError, match=r"fake-1 does not start: cannot find my trousers"):
        stack.start()


def test_stack_second_in_the_same_folder_is_refused(create_stack: Callable[..., Stack]) -> None:
    create_stack().start()
    with pytest.raises(StackError, match="another stack uses"):
        create_stack().start()


def test_stack_two_side_by_side_have_ports_of_their_own(
    create_stack: Callable[..., Stack],
) -> None:
    one, two = create_stack(name="one"), create_stack(name="two")
    one.start()
    two.start()
    assert one.url != two.url
    assert one.nats_url != two.nats_url


def test_stack_port_taken_is_refused_naming_the_option(
    create_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        chosen = options(tmp_path / "data")._replace(port=taken.getsockname()[1])
        with pytest.raises(StackError, match=r"cannot listen on .*--port"):
            Stack(chosen).start()


def test_stack_in_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "penstock.supervisor"]
    given = json.dumps(options(tmp_path / "file" / "data")._asdict())
    shown = subprocess.run([*command, given], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: ")
    assert len(shown.stderr.splitlines()) == 1


def test_stack_public_address_without_auth_is_refused(create_stack: Callable[..., Stack]) -> None:
    with pytest.raises(StackError, match=r"refusing to listen on 0\.0\.0\.0"):
        create_stack(host="0.0.0.0").start()


def test_stack_service_deaf_to_sigterm_is_killed_at_the_second_signal(
    create_stack: Callable[..., Stack],
) -> None:
    stack = create_stack("stubborn")
    stack.start()
    supervisor, service = stack.pid("supervisor"), stack.pid("fake-0")
    os.kill(supervisor, signal.SIGINT)
    os.kill(supervisor, signal.SIGINT)
    stack.stop(within=5)
    assert not alive(service)


def test_supervisor_at_rest_has_loaded_nothing_heavy(create_stack: Callable[..., Stack]) -> None:
    stack = create_stack()
    stack.start()
    maps = Path(f"/proc/{stack.pid('supervisor')}/maps").read_text()
    assert "pydantic_core" not in maps
    assert "_asyncio" not in maps


def test_supervisor_imported_loads_nothing_heavy() -> None:
    probe = (
        "import sys, penstock.supervisor; heavy = {'pydantic', 'asyncio', 'typer', 'rich', 'nats',"
        " 'importlib.metadata', 'inspect', 'dataclasses'}; print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
