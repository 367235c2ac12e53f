"""A queue without a runner on a whole stack: shown wherever a person looks, until one starts."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from penstock.runner import Runner, StepContext
from penstock.runner.process import serve
from penstock.runner.settings import RunnerSettings
from tests.support.installation import Installation
from tests.support.waiting import eventually


async def test_queue_without_a_runner_is_shown_until_one_starts(
    installation: Installation,
) -> None:
    queue = f"q{uuid.uuid4().hex[:12]}"
    tool: dict[str, Any] = {
        "apiVersion": "penstock/v1",
        "kind": "Tool",
        "metadata": {"name": f"tool-{queue}"},
        "spec": {"runner": {"queue": queue}},
    }
    flow = {
        "apiVersion": "penstock/v1",
        "kind": "Workflow",
        "metadata": {"name": f"flow-{queue}"},
        "spec": {"steps": [{"id": "read", "tool": f"tool-{queue}"}]},
    }
    installation.apply(tool, flow)
    run_id = installation.start(f"flow-{queue}")["run_id"]

    async def penstock(*arguments: str) -> str:
        return await asyncio.to_thread(installation.penstock, *arguments)

    def step() -> dict[str, Any]:
        steps: list[dict[str, Any]] = installation.get(run_id)["steps"]
        return steps[0] if steps else {}

    await eventually(lambda: step().get("activity") == "unserved")
    hint = f"no runner serves queue tool.{queue}"
    assert f"{hint}; waiting steps: 1" in await penstock("runs", "show", run_id)
    assert f"{hint}: steps of tool tool-{queue} wait" in await penstock("doctor")
    events = await penstock("runs", "tail", run_id, "-n", "4", "--json")
    last = json.loads(events.splitlines()[-1])
    assert (last["type"], last["data"]) == (
        "queue_unserved",
        {"queue": f"tool.{queue}", "steps": 1},
    )

    runner, release, ending = Runner(queue=queue), asyncio.Event(), asyncio.Event()

    @runner.tool(f"tool-{queue}")
    async def read(ctx: StepContext) -> str:
        ctx.heartbeat({"page": 7})
        await release.wait()
        return "read"

    settings = RunnerSettings(
        nats_url=installation.stack.nats_url, data_dir=installation.data_dir, metrics_port=-1
    )
    serving = asyncio.create_task(serve([runner], settings, name="queues", until=ending))

    async def working() -> bool:
        return (await asyncio.to_thread(step)).get("activity") == "working"

    await eventually(working)
    shown = await asyncio.to_thread(step)
    assert (shown["progress"], shown["runner_id"]) == ('{"page": 7}', settings.instance_id)
    assert shown["started_at"]
    printed = await penstock("runs", "show", run_id)
    assert "no runner" not in printed
    assert '{"page": 7}' in printed
    assert hint not in await penstock("doctor")

    release.set()

    async def has_ended() -> bool:
        return str((await asyncio.to_thread(installation.get, run_id))["status"]) == "done"

    await eventually(has_ended)
    done = step()
    assert (done["status"], done["activity"], done["output"]) == ("succeeded", None, "read")
    ending.set()
    await serving
