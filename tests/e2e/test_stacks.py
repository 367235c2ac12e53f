import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from penstock.child import free_ports
from penstock.runs.events import ClientEvent
from penstock.stack import READY_SECONDS
from tests.support.installation import Installation, scripted_agent
from tests.support.waiting import eventually

IDLE_MIB = 400
SLOW = {"text": "one two three four", "delay_seconds": 2.0}


def memory_mib(pid: int) -> float:
    """Return a process's proportional share of memory."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("Pss:")[1].split()[0]) / 1024


def test_stack_started_is_light(create_installation: Callable[..., Installation]) -> None:
    stack = create_installation().stack
    names = ("supervisor", *stack.state.processes)
    pids = {name: stack.pid(name) for name in names}
    memory = {name: memory_mib(pid) for name, pid in pids.items()}
    assert sum(memory.values()) < IDLE_MIB, memory


def test_stack_restarted_keeps_its_runs_and_definitions(
    create_installation: Callable[..., Installation],
) -> None:
    first = create_installation()
    first.apply(scripted_agent("keeper", {"text": "kept"}))
    run = first.start("keeper", "x", wait=30)
    before = first.get(run["run_id"])
    first.close()
    second = create_installation(data_dir=first.data_dir)
    assert second.get(run["run_id"]) == before
    assert second.start("keeper", "y", wait=30)["status"] == "done"
    listed = second.client.get("/v1/runs").json()["items"]
    assert {found["run_id"] for found in listed} >= {run["run_id"]}


async def test_stack_killed_in_the_middle_of_a_run_finishes_it_after_its_restart(
    create_installation: Callable[..., Installation],
) -> None:
    first = create_installation()
    first.apply(scripted_agent("slow", SLOW))
    run_id = first.start("slow", "x")["run_id"]
    await eventually(lambda: len(first.log(run_id)) >= 3)
    first.stack.kill()
    second = create_installation(data_dir=first.data_dir)
    await eventually(lambda: second.get(run_id)["status"] == "done", within=30)
    events = [event["type"] for event in second.log(run_id)]
    assert events.count("agent_invoke_done") == 1


def test_stacks_side_by_side_do_not_meet(
    installation: Installation, create_installation: Callable[..., Installation]
) -> None:
    other = create_installation()
    other.apply(scripted_agent("only-there", {"text": "hi"}))
    assert other.start("only-there", "x", wait=30)["status"] == "done"
    refused = installation.client.post("/v1/runs", json={"name": "only-there"})
    assert refused.status_code == 404


def test_stack_flushing_every_message_is_durable(
    create_installation: Callable[..., Installation],
) -> None:
    durable = create_installation(durable=True)
    durable.apply(scripted_agent("safe", {"text": "safe"}))
    assert durable.start("safe", "x", wait=30)["status"] == "done"
    config = (durable.data_dir / "nats" / "nats-server.conf").read_text()
    assert "sync_interval: always" in config


@pytest.mark.parametrize(
    "service", ["gateway", "registry", "engine", "projector", "agent-runner", "tool-runner"]
)
async def test_service_killed_comes_back_and_runs_go_on(
    installation: Installation, service: str
) -> None:
    stack = installation.stack
    before = stack.pid(service)
    os.kill(before, signal.SIGKILL)

    def back() -> bool:
        process = stack.state.processes[service]
        return bool(process.ready) and process.pid != before

    await eventually(back, within=30)
    run = installation.start("growth-report", {"principal": 1, "rate": 1, "years": 1}, wait=30)
    assert run["status"] == "done"


@pytest.fixture
def second_gateway(installation: Installation) -> Iterator[str]:
    """One more gateway beside the stack's own."""
    (port,) = free_ports(1)
    command = ["-m", "penstock.cli.app", "--data-dir", str(installation.data_dir)]
    process = subprocess.Popen(
        [sys.executable, *command, "services", "run", "gateway"],
        env={**os.environ, "PENSTOCK_PORT": str(port), "PENSTOCK_METRICS_PORT": "-1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    def listens() -> bool:
        try:
            return httpx.get(f"{url}/v1/agents").is_success
        except httpx.ConnectError:
            return False

    asyncio.run(eventually(listens, within=READY_SECONDS))
    yield url
    process.terminate()
    assert process.wait(15) == 0


def test_stream_begun_on_one_gateway_goes_on_at_another(
    installation: Installation, second_gateway: str, create_agent: Callable[..., str]
) -> None:
    name = create_agent({"text": "a b c d", "delay_seconds": 0.5})
    run_id = installation.start(name, "x")["run_id"]
    beginning: list[ClientEvent] = []
    with closing(installation.stream(run_id)) as stream:
        for event in stream:
            beginning.append(event)
            if event.type == "agent_invoke_started":
                break
    last = beginning[-1].id
    assert last is not None
    rest = list(installation.stream(run_id, url=second_gateway, after=last))
    seen = [event.id for event in [*beginning, *rest] if event.id]
    assert seen == [event["id"] for event in installation.log(run_id) if "id" in event]
    pieces = "".join(str(e.data["text"]) for e in rest if e.type == "agent_stream_delta")
    assert pieces == "a b c d"


def test_stack_with_auth_refuses_strangers_and_takes_keys(
    create_installation: Callable[..., Installation],
) -> None:
    closed = create_installation(auth=True)
    assert closed.client.get("/v1/agents").status_code == 401
    made = subprocess.run(
        [sys.executable, "-m", "penstock.cli.app", "--data-dir", str(closed.data_dir),
         "keys", "create", "--role", "admin"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    secret = made.stdout.split()[-1]
    answer = closed.client.get("/v1/agents", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 200
