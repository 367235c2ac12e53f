import asyncio
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from penstock.contracts.errors import RejectedError
from penstock.telemetry import tracing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing._install(provider)
    yield exporter
    tracing.shutdown()


def test_parse_gives_back_what_was_written() -> None:
    context = tracing.parse(HEADER)

    assert context == tracing.TraceContext(TRACE, SPAN, 1)
    assert context.traceparent == HEADER


def test_parse_of_a_later_version_ignores_what_it_adds() -> None:
    assert tracing.parse(f"01-{TRACE}-{SPAN}-00-more") == tracing.TraceContext(TRACE, SPAN, 0)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "garbage",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
    ],
)
def test_parse_of_something_malformed_is_absent(header: str | None) -> None:
    assert tracing.parse(header) is None


def test_child_stays_in_the_trace_with_a_span_of_its_own() -> None:
    parent = tracing.new_trace()
    child = parent.child()

    assert child.trace_id == parent.trace_id
    assert child.span_id != parent.span_id


def test_span_without_exporter_passes_the_context_on_unchanged() -> None:
    with tracing.span("process x", traceparent=HEADER) as outer:
        with tracing.span("inner"):
            headers = tracing.inject({"a": "b"})
        assert outer.trace_id == TRACE

    assert headers == {"a": "b", "traceparent": HEADER}
    assert tracing.current() is None
    assert tracing.inject({}) == {}


def test_span_without_exporter_and_parent_starts_a_trace() -> None:
    with tracing.span("publish x", attributes={"a": 1}) as span:
        span.set(b=2)
        span.fail("some_code")

    assert tracing.parse(span.traceparent) is not None


async def test_spans_of_two_tasks_do_not_meet() -> None:
    async def trace_id() -> str:
        with tracing.span("task") as span:
            await asyncio.sleep(0)
            return span.trace_id

    first, second = await asyncio.gather(trace_id(), trace_id())

    assert first != second


def test_span_with_exporter_is_recorded_below_its_parent(exported: InMemorySpanExporter) -> None:
    with tracing.span("process runs", kind="consumer", traceparent=HEADER) as outer:
        outer.set(messaging__system="nats")
        with tracing.span("chat m", kind="client", attributes={"gen_ai.request.model": "m"}):
            pass

    inner, recorded = exported.get_finished_spans()
    assert recorded.parent is not None
    assert inner.parent is not None
    assert f"{recorded.parent.span_id:016x}" == SPAN
    assert inner.parent.span_id == recorded.context.span_id
    assert f"{inner.context.trace_id:032x}" == TRACE
    assert (recorded.kind, inner.kind) == (SpanKind.CONSUMER, SpanKind.CLIENT)
    assert recorded.attributes == {"messaging.system": "nats"}
    assert outer.traceparent == f"00-{TRACE}-{recorded.context.span_id:016x}-01"


def test_span_with_exporter_that_raises_is_failed(exported: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="why"), tracing.span("work"):
        raise ValueError("why")

    (recorded,) = exported.get_finished_spans()
    assert recorded.status.status_code is StatusCode.ERROR
    assert recorded.attributes == {"error.type": "ValueError"}
    assert recorded.parent is None


def test_configure_without_endpoint_exports_nothing() -> None:
    tracing.configure(service="s", instance_id="i", otlp_endpoint=None)

    assert tracing._exporter is None


def test_configure_without_the_extra_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    with pytest.raises(RejectedError) as caught:
        tracing.configure(service="s", instance_id="i", otlp_endpoint="http://127.0.0.1:1")

    assert caught.value.code == "otlp_not_installed"
