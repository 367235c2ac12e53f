"""W3C trace context in message headers, and spans where an OTLP collector is configured.

Without a collector no span is recorded: an incoming context is passed on unchanged, as the
W3C recommendation asks of those who do not take part, and only a missing one is made.
The OpenTelemetry SDK is imported by ``configure`` alone, and only with an endpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self

from penstock.contracts.errors import RejectedError
from penstock.telemetry.logs import without_secrets

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

TRACEPARENT: Final = "traceparent"
SAMPLED: Final = 0x01

SpanKind = Literal["internal", "server", "client", "producer", "consumer"]
AttributeValue = str | bool | int | float

_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_INVALID_VERSION: Final = "ff"


class TraceContext(NamedTuple):
    """Where in which trace we are: lower-case hexadecimal ids of 32 and 16 digits."""

    trace_id: str
    span_id: str
    flags: int = SAMPLED

    @property
    def traceparent(self) -> str:
        """The value of the ``traceparent`` header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def child(self) -> TraceContext:
        """Return a new span's context in the same trace."""
        return TraceContext(self.trace_id, os.urandom(8).hex(), self.flags)


def new_trace() -> TraceContext:
    """Return the context of a new, sampled trace."""
    return TraceContext(os.urandom(16).hex(), os.urandom(8).hex())


def parse(traceparent: str | None) -> TraceContext | None:
    """Read a ``traceparent`` header; anything malformed counts as absent, never as an error."""
    if traceparent is None or (found := _HEADER.fullmatch(traceparent.strip())) is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == _INVALID_VERSION or (version == "00" and rest):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceContext(trace_id, span_id, int(flags, 16))


_current: ContextVar[TraceContext | None] = ContextVar("penstock_trace", default=None)


def current() -> TraceContext | None:
    """Return the context of the innermost span of this task."""
    return _current.get()


def inject(headers: dict[str, str]) -> dict[str, str]:
    """Put the current context, if any, into message headers, and return the same headers."""
    if (context := _current.get()) is not None:
        headers[TRACEPARENT] = context.traceparent
    return headers


class Span:
    """A piece of work; made by ``span`` and used as a context manager.

    An exception that leaves the block node records the span as failed and passes on.
    """

    __slots__ = ("_attributes", "_kind", "_name", "_recorded", "_token", "context")

    def __init__(
        self,
        name: str,
        kind: SpanKind,
        parent: TraceContext | None,
        attributes: Mapping[str, AttributeValue] | None,
    ) -> None:
        self._name = name
        self._kind = kind
        self._attributes = attributes
        self._recorded: OtelSpan | None = None
        self._token: Token[TraceContext | None] | None = None
        self.context: TraceContext | None = parent or _current.get()

    def __enter__(self) -> Self:
        if _exporter is not None:
            self._recorded, self.context = _exporter.start(
                self._name, self._kind, self.context, self._attributes
            )
        elif self.context is None:
            self.context = new_trace()
        self._token = _current.set(self.context)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        if self._recorded is not None:
            if error is not None:
                self.fail(type(error).__name__, str(error))
            self._recorded.end()

    @property
    def traceparent(self) -> str:
        """Header value for what this span causes; inside the ``with`` block only."""
        return "" if self.context is None else self.context.traceparent

    @property
    def trace_id(self) -> str:
        """Id of the trace, for logs; inside the ``with`` block only."""
        return "" if self.context is None else self.context.trace_id

    def set(self, **attributes: AttributeValue) -> None:
        """Add attributes; ``__`` in a name stands for a dot (``gen_ai__request__model``)."""
        if self._recorded is not None:
            for name, value in attributes.items():
                shown = without_secrets(value) if isinstance(value, str) else value
                self._recorded.set_attribute(name.replace("__", "."), shown)

    def fail(self, code: str, message: str = "") -> None:
        """Node record the span as failed without raising."""
        if self._recorded is not None:
            from opentelemetry.trace import StatusCode  # noqa: PLC0415 - only when recording

            self._recorded.set_attribute("error.type", code)
            self._recorded.set_status(StatusCode.ERROR, without_secrets(message or code))


def span(
    name: str,
    *,
    kind: SpanKind = "internal",
    traceparent: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Span:
    """Return a span to be used in a ``with`` statement.

    Args:
        name: ``{operation} {target}``, of low cardinality.
        kind: Its part in a conversation.
        traceparent: Header of the message that caused it; without one the current span.
        attributes: By OpenTelemetry's semantic conventions.
    """
    return Span(name, kind, parse(traceparent) if traceparent else None, attributes)


class _Exporter:
    """Real spans, by the OpenTelemetry SDK."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - only with an endpoint

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("penstock")

    def start(
        self,
        name: str,
        kind: SpanKind,
        parent: TraceContext | None,
        attributes: Mapping[str, AttributeValue] | None,
    ) -> tuple[OtelSpan, TraceContext]:
        trace = self._trace
        context = trace.set_span_in_context(trace.INVALID_SPAN)
        if parent is not None:
            remote = trace.SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(parent.flags),
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        recorded = self._tracer.start_span(
            name, context=context, kind=trace.SpanKind[kind.upper()], attributes=attributes
        )
        made = recorded.get_span_context()
        return recorded, TraceContext(
            f"{made.trace_id:032x}", f"{made.span_id:016x}", int(made.trace_flags)
        )

    def shutdown(self) -> None:
        self._provider.shutdown()


_exporter: _Exporter | None = None


def configure(*, service: str, instance_id: str, otlp_endpoint: str | None) -> None:
    """Export spans if an endpoint is given. Called once, by ``__main__``.

    Args:
        service: Becomes ``service.name``.
        instance_id: Becomes ``service.instance.id``.
        otlp_endpoint: Base URL of the collector, without ``/v1/traces``.

    Raises:
        RejectedError: ``otlp_not_installed`` if an endpoint is given without the extra ``otlp``.
    """
    if otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise RejectedError(
            "otlp_not_installed",
            "PENSTOCK_OTLP_ENDPOINT is set, but the exporter is missing: install penstock[otlp]",
        ) from error
    resource = Resource.create({"service.name": service, "service.instance.id": instance_id})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _install(provider)


def exporting() -> bool:
    """Return whether spans are recorded; if not, the hot path need not create any."""
    return _exporter is not None


def shutdown() -> None:
    """Send buffered spans and stop exporting. Blocks; for the end of a process."""
    global _exporter  # noqa: PLW0603 - tracing is configured once per process, as logging is
    if _exporter is not None:
        _exporter.shutdown()
        _exporter = None


def _install(provider: TracerProvider) -> None:
    global _exporter  # noqa: PLW0603 - see above
    _exporter = _Exporter(provider)
