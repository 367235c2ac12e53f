"""Checks of steps that wait, send a message or end the run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from penstock.contracts.errors import ErrorDetail, finding
from penstock_registry.core.expression_scope import (
    ExpressionScope,
    condition_faults,
    template_faults,
)
from penstock_registry.core.faults import choice_faults
from penstock_registry.core.steps import StepSpec, WaitStep


def waiting_faults(
    step: StepSpec, path: str, scope: ExpressionScope, longest: float
) -> Iterator[ErrorDetail]:
    """Yield the errors of a step that waits, sends a message or ends the run.

    Args:
        step: The step.
        path: Where it stands.
        scope: What its templates see.
        longest: Timeout of the run in seconds; no wait may be as long.
    """
    if step.wait is not None:
        yield from _wait(step.wait, f"{path}.wait", scope, longest)
    if step.approval is not None:
        place = f"{path}.approval"
        yield from template_faults(step.approval.message, f"{place}.message", scope)
        if "expires" in step.approval.model_fields_set:
            yield from _too_long(step.approval.expires, f"{place}.expires", longest)
    if step.send is not None:
        place = f"{path}.send"
        to = step.send.to
        yield from choice_faults(to, f"{place}.to")
        for name in to.chosen:
            yield from template_faults(getattr(to, name), f"{place}.to.{name}", scope)
        yield from template_faults(step.send.payload, f"{place}.payload", scope)
    if step.end is not None:
        yield from template_faults(step.end.output, f"{path}.end.output", scope)
        yield from template_faults(step.end.message, f"{path}.end.message", scope)


def _wait(
    wait: WaitStep, path: str, scope: ExpressionScope, longest: float
) -> Iterator[ErrorDetail]:
    yield from choice_faults(wait, path)
    if isinstance(wait.for_, str):
        yield from template_faults(wait.for_, f"{path}.for", scope)
    elif wait.for_ is not None:
        yield from _too_long(wait.for_, f"{path}.for", longest)
    if wait.until is not None:
        yield from template_faults(wait.until, f"{path}.until", scope)
        if "{{" not in wait.until and not _is_moment(wait.until):
            yield finding(
                f"{path}.until",
                f"got {wait.until!r}"[:200],
                "RFC 3339 with a time zone, such as 2026-12-24T18:00:00Z",
            )
    if wait.signal is not None:
        place = f"{path}.signal"
        if wait.signal.match is not None:
            seen = scope.plus("signal")
            yield from condition_faults(wait.signal.match, f"{place}.match", seen)
        yield from template_faults(wait.signal.correlation, f"{place}.correlation", scope)
        if wait.timeout is not None:
            yield from _too_long(wait.timeout, f"{path}.timeout", longest)
    for name in ("timeout", "on_timeout"):
        if wait.signal is None and name in wait.model_fields_set:
            message = "only a signal can fail to come"
            yield finding(f"{path}.{name}", message, "with signal")


def _too_long(seconds: float, path: str, longest: float) -> Iterator[ErrorDetail]:
    if seconds >= longest:
        yield finding(
            path,
            f"{seconds:g} s are longer than the whole run may take",
            f"< {longest:g} s, or a larger timeout_seconds of the workflow",
        )


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
