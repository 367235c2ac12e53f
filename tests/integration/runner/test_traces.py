"""Spans of steps, where they are exported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from penstock.contracts import subjects
from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import SecretRef
from penstock.runner import Runner, StepContext
from penstock.telemetry import tracing
from penstock_agent_runner.agents import Agents
from penstock_agent_runner.providers import ProviderModel
from penstock_agent_runner.remote import RemoteAgent
from penstock_agent_runner.scripted import ScriptedModel
from tests.integration.runner.conftest import Bench

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing._install(provider)
    yield exporter
    tracing.shutdown()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_agent_step_has_a_span_and_within_it_one_of_the_model(
    bench: Bench, queue: str, exporter: InMemorySpanExporter
) -> None:
    agents = Agents(
        scripted=ScriptedModel(), provider=ProviderModel(environment={}), remote=RemoteAgent()
    )
    runner = Runner(kind="agent", queue=queue)
    runner.step()(agents.turn)
    await bench.start(runner)
    asked = {"messages": [{"role": "user", "content": "one two three"}]}
    prefix = await bench.schedule(
        runner, "one", asked, config={"model": "scripted/x"}, traceparent=TRACEPARENT
    )
    await bench.result(prefix)
    spans = by_name(exporter)
    step, chat = spans["invoke_agent one"], spans["chat scripted/x"]
    assert step.context is not None
    assert chat.parent is not None
    assert f"{step.context.trace_id:032x}" == TRACE_ID
    assert chat.parent.span_id == step.context.span_id
    assert chat.attributes is not None
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.request.model"] == "scripted/x"
    assert chat.attributes["gen_ai.usage.input_tokens"] == 3
    assert step.attributes is not None
    assert step.attributes["gen_ai.agent.name"] == "one"
    entry = await bench.harness.reader.read_fact(subjects.result(prefix, "a", 1))
    assert entry is not None
    assert entry.traceparent == f"00-{TRACE_ID}-{step.context.span_id:016x}-01"


async def test_failed_tool_step_has_a_failed_span_and_its_context_is_the_span_s(
    bench: Bench, queue: str, exporter: InMemorySpanExporter
) -> None:
    runner = Runner(kind="tool", queue=queue)
    seen: list[str | None] = []

    @runner.tool("fail")
    async def fail(ctx: StepContext) -> None:
        seen.append(ctx.traceparent)
        raise RejectedError("no_such_city", "no")

    await bench.start(runner)
    await bench.done(runner, "fail", traceparent=TRACEPARENT)
    span = by_name(exporter)["execute_tool fail"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "no_such_city"
    assert span.attributes["gen_ai.tool.name"] == "fail"
    assert span.context is not None
    assert seen == [f"00-{TRACE_ID}-{span.context.span_id:016x}-01"]


async def test_without_an_exporter_the_trace_is_passed_on_unchanged(
    bench: Bench, queue: str
) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("pass")
    async def note(ctx: StepContext) -> str | None:
        return ctx.traceparent

    await bench.start(runner)
    prefix = await bench.schedule(runner, "pass", traceparent=TRACEPARENT)
    assert (await bench.result(prefix)).output == TRACEPARENT
    entry = await bench.harness.reader.read_fact(subjects.result(prefix, "a", 1))
    assert entry is not None
    assert entry.traceparent == TRACEPARENT
    bare = await bench.schedule(runner, "pass")
    assert (await bench.result(bare)).output is None


async def test_secret_of_a_step_is_in_no_span(
    bench: Bench, queue: str, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_SECRET_KEY", "c4n4ry-of-spans")
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("break")
    async def break_(key: str) -> None:
        with tracing.span("inner") as inner:
            inner.set(response=f"got {key}")
            raise KeyError(f"no such thing: {key}")

    await bench.start(runner)
    secrets = {"/input/key": (SecretRef(secret="KEY"),)}
    result = await bench.done(runner, "break", {"key": "[secret]"}, secrets=secrets)
    assert result.error is not None
    assert "[secret]" in result.error.message
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    assert len(spans) == 2
    assert not any("c4n4ry" in span for span in spans)
    assert all("[secret]" in span for span in spans)
