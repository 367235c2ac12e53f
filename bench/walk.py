"""The walk of one request: how many of our modules, changes of module and calls it takes.

    python -m bench.walk --list

Gateway, engine and tool-runner run in one process and one event loop, beside a real nats-server.
The request is ``POST /v1/runs`` with ``Prefer: wait`` for a plan with one tool step, on a gateway
without keys (as of ``penstock dev``). Counted, from the first byte of the request to the answer:

- a *call*: a function of our packages (``penstock*``) is entered. A coroutine that resumes is not
  entered again; functions that Python generates (comprehensions, ``__init__`` of dataclasses) and
  everything in other packages do not count.
- a *change*: a call in another module than the call before it, in order of time.
- a *module*: of our packages, with at least one call.

Earlier requests come first, so that imports, caches and connections do not count. What runs beside
requests (heartbeats, leases, health, the reconciler) is left out of the count by its module. The
figures are of the request with the median number of calls. Compiled modules are refused: Python
does not report calls of their functions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from bench.client import Client
from penstock.bus.claims import Claims
from penstock.bus.connection import connect
from penstock.bus.kv import Bucket
from penstock.bus.topology import ensure
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.plan import CompiledTool, Plan, PublishedVersion, ToolNode
from penstock.embedded import NatsServer
from penstock.runner.process import serve
from penstock_gateway.app import create_app
from penstock_gateway.main import create_server
from penstock_gateway.settings import GatewaySettings
from penstock_orchestrator.main import EngineProcess
from penstock_orchestrator.settings import OrchestratorSettings
from penstock_tool_runner.builtin import builtin_runner
from penstock_tool_runner.settings import ToolRunnerSettings

WARM_UP: Final = 20
COUNTED: Final = 15
_BESIDE: Final = frozenset(
    {
        "penstock.bus.history",
        "penstock.runner.heartbeat",
        "penstock.telemetry.health",
        "penstock_orchestrator.engine.leases",
        "penstock_orchestrator.engine.reconciler",
        "penstock_orchestrator.schedules.scheduler",
    }
)
_BESIDE_FUNCTIONS: Final = frozenset({"_watchdog"})
"""Loops of modules that requests enter as well."""


class Call(NamedTuple):
    """One function entered."""

    module: str
    function: str


class Walk:
    """Records calls of our functions while it is the profiler."""

    def __init__(self) -> None:
        """Begin with no calls."""
        self.calls: list[Call] = []
        # Frames, and not their ids, which Python gives again.
        self._seen: set[FrameType] = set()

    def __call__(self, frame: FrameType, event: str, _arg: object) -> None:
        """Take one event of ``sys.setprofile``."""
        if event != "call" or frame in self._seen:
            return
        module = str(frame.f_globals.get("__name__", ""))
        code = frame.f_code
        generated = code.co_filename.startswith("<") or code.co_name.startswith("<")
        beside = module in _BESIDE or code.co_name in _BESIDE_FUNCTIONS
        if module.startswith("penstock") and not generated and not beside:
            self._seen.add(frame)
            self.calls.append(Call(module, code.co_qualname))

    @property
    def modules(self) -> Counter[str]:
        """Calls by module."""
        return Counter(call.module for call in self.calls)

    @property
    def changes(self) -> int:
        """Calls in another module than the call before."""
        return sum(one.module != two.module for one, two in pairwise(self.calls))

    def of(self, *packages: str) -> int:
        """Return how many modules of some packages were entered."""
        return sum(module.startswith(packages) for module in self.modules)


def _plan() -> Plan:
    return Plan(
        name="walk",
        kind=DefinitionKind.WORKFLOW,
        nodes=(ToolNode(id="s", ref="noop", input={"n": 1}),),
        tools={"noop": CompiledTool(name="noop", queue="builtin")},
        output="s",
    )


async def _services(stack: AsyncExitStack, folder: Path) -> int:
    """Start the bus and the three services; return the gateway's port."""
    server = stack.enter_context(NatsServer(folder / "nats"))
    engine_settings = OrchestratorSettings(nats_url=server.url, data_dir=folder)
    bus = await connect(engine_settings, name="engine")
    stack.push_async_callback(bus.close)
    await ensure(bus, engine_settings)
    plan = _plan()
    await Bucket(bus, subjects.PLANS).put(plan.digest(), plan.to_bytes())
    version = PublishedVersion(name=plan.name, kind=plan.kind, version=1, plan_digest=plan.digest())
    key = subjects.published_key("default", plan.name)
    await Bucket(bus, subjects.PUBLISHED).put(key, version.model_dump_json().encode())
    claims = Claims(bus, engine_settings.claim_threshold_bytes)
    writer = await LogWriter(bus, engine_settings, claims).start()
    engine = EngineProcess(engine_settings, bus, writer)
    await engine.start()
    stack.push_async_callback(engine.stop)

    ending = asyncio.Event()
    tools = builtin_runner(10)
    settings = ToolRunnerSettings(nats_url=server.url, data_dir=folder, metrics_port=-1)
    runner = asyncio.create_task(serve([tools], settings, name="tools", until=ending))

    async def end() -> None:
        ending.set()
        await runner

    stack.push_async_callback(end)
    return await start_gateway(
        stack,
        GatewaySettings(nats_url=server.url, data_dir=folder, auth_required=False, port=0),
    )


async def start_gateway(stack: AsyncExitStack, settings: GatewaySettings) -> int:
    """Serve on this loop until the stack is closed; return the port."""
    server = create_server(create_app(settings), settings)
    serving = asyncio.create_task(server.serve())

    async def end() -> None:
        server.should_exit = True
        await serving

    stack.push_async_callback(end)
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    return int(server.servers[0].sockets[0].getsockname()[1])


async def measure() -> Walk:
    """Return the walk of the request with the median number of calls."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="penstock-walk-", ignore_cleanup_errors=True)
        )
        client = Client(await _services(stack, Path(folder)))
        stack.callback(client.close)
        request = client.prepare("POST", "/v1/runs", {"Prefer": "wait=30"})(
            json.dumps({"name": "walk", "input": {"n": 1}}).encode()
        )
        walks = []
        for number in range(WARM_UP + COUNTED):
            walk = Walk()
            # A pause, so that acknowledgements of the request before are not counted.
            await asyncio.sleep(0.05)
            sys.setprofile(walk if number >= WARM_UP else None)
            answer = await client.send(request)
            sys.setprofile(None)
            if answer.status != 200 or b'"status":"done"' not in answer.body:
                raise RuntimeError(f"{answer.status} {answer.body[:2000]!r}")
            walks.append(walk)
    counted = sorted(walks[WARM_UP:], key=lambda walk: (len(walk.calls), walk.changes))
    return counted[len(counted) // 2]


def _compiled() -> list[str]:
    """Return the names of our modules that are no Python source, among those imported."""
    return sorted(
        name
        for name, module in sys.modules.items()
        if name.startswith("penstock") and not str(module.__file__ or ".py").endswith(".py")
    )


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print every module with its calls")
    parser.add_argument("--steps", action="store_true", help="print every call in order")
    options = parser.parse_args()
    if compiled := _compiled():
        parser.exit(1, f"compiled modules hide their calls, such as {compiled[0]}\n")
    walk = asyncio.run(measure())
    print(
        f"{len(walk.modules)} modules, {walk.changes} changes of module in {len(walk.calls)} calls"
    )
    for name, packages in (
        ("gateway", ("penstock_gateway",)),
        ("engine", ("penstock_orchestrator",)),
        ("tool-runner, runner SDK", ("penstock_tool_runner", "penstock.runner")),
    ):
        print(f"  {name}: {walk.of(*packages)} modules")
    if options.list:
        for module, count in sorted(walk.modules.items()):
            print(f"{count:5} {module}")
    if options.steps:
        for call in walk.calls:
            print(f"{call.module}.{call.function}")


if __name__ == "__main__":
    main()
