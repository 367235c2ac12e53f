"""Logs and traces of a process, set up from its settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from penstock.settings import CoreSettings
from penstock.telemetry import logs, tracing


@contextmanager
def observed(settings: CoreSettings, service: str) -> Iterator[None]:
    """Configure logs and traces; at the end of the block send the buffered spans.

    Args:
        settings: Settings of the process.
        service: Its name in logs; traces show ``penstock-{service}``.
    """
    logs.configure(
        service=service,
        instance_id=settings.instance_id,
        level=settings.log_level,
        style=settings.log_format,
    )
    tracing.configure(
        service=f"penstock-{service}",
        instance_id=settings.instance_id,
        otlp_endpoint=settings.otlp_endpoint,
    )
    try:
        yield
    finally:
        tracing.shutdown()
