"""Nodes: the steps of a workflow as the engine executes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pydantic import JsonValue

from penstock.contracts import plan
from penstock.contracts.plan import Block, CompiledTool, Node
from penstock.expressions.templates import whole_expression
from penstock_registry.core.blocks import Inner, blocks_of, needs_of, undo_id
from penstock_registry.core.requests import call_of
from penstock_registry.core.steps import ChildStep, HttpRequest, StepSpec, UndoSpec

Pin = Callable[[ChildStep], plan.ChildSpec]
"""Gives the exact plan of a child run."""

RUN_INPUT: Final = "{{ input }}"


class Builder:
    """Makes nodes of steps, and the tools that only they call."""

    def __init__(self, taken: Iterable[str], pin: Pin) -> None:
        """Start with no nodes.

        Args:
            taken: Names that tools of the plan have already.
            pin: Gives the exact plan of a child run.
        """
        self.tools: dict[str, CompiledTool] = {}
        self._taken = {name.lower() for name in taken}
        self._pin = pin

    def nodes(self, steps: Sequence[StepSpec]) -> tuple[Node, ...]:
        """Return the nodes of a block's steps."""
        needs = needs_of(steps)
        return tuple(self._node(step, needs[index]) for index, step in enumerate(steps))

    def _node(self, step: StepSpec, needs: tuple[str, ...]) -> Node:
        kind, ref, given = self._work(step)
        inner = [self._block(one) for one in blocks_of(step)]
        return Node(
            id=step.id,
            kind=kind,
            ref=ref,
            needs=needs,
            when=step.when,
            input=given,
            retry=step.retry.policy() if step.retry is not None else None,
            timeout_seconds=step.timeout_seconds,
            on_error=step.on_error,
            fallback=step.fallback,
            compensate=(
                self._undo(step.id, step.compensate) if step.compensate is not None else None
            ),
            branch=_branch(step, inner),
            parallel=_parallel(step, inner),
            map=_map(step, inner),
            loop=_loop(step, inner),
            wait=_wait(step),
            approval=_approval(step),
            child=self._pin(step.workflow) if step.workflow is not None else None,
            send=_send(step),
            end=_end(step),
        )

    def _work(self, step: StepSpec) -> tuple[plan.NodeKind, str, JsonValue]:
        """Return kind, reference and input of what a step does."""
        if step.work in ("agent", "tool", "http"):
            return self._called(step, step.id)
        given = step.transform
        if step.workflow is not None:
            given = RUN_INPUT if step.workflow.input is None else step.workflow.input
        return _KINDS[step.work], "", given

    def _called(
        self, step: StepSpec | UndoSpec, step_id: str
    ) -> tuple[plan.NodeKind, str, JsonValue]:
        if step.agent is not None:
            return "agent", step.agent, RUN_INPUT if step.input is None else step.input
        if step.http is not None:
            return "tool", *self._request(step_id, step.http)
        return "tool", step.tool or "", step.input

    def _request(self, step_id: str, request: HttpRequest) -> tuple[str, JsonValue]:
        name = stem = f"http-{step_id}"
        number = 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.lower())
        description = f"{request.method} {request.url}"[:200]
        self.tools[name], arguments = call_of(name, description, request)
        return name, arguments

    def _undo(self, step_id: str, undo: UndoSpec) -> Node:
        name = undo_id(step_id, undo)
        kind, ref, given = self._called(undo, name)
        return Node(
            id=name,
            kind=kind,
            ref=ref,
            input=given,
            retry=undo.retry.policy() if undo.retry is not None else None,
            timeout_seconds=undo.timeout_seconds,
        )

    def _block(self, inner: Inner) -> Block:
        return Block(name=inner.name, nodes=self.nodes(inner.steps), output=inner.output)


_KINDS: Final[dict[str, plan.NodeKind]] = {
    "transform": "transform",
    "branch": "branch",
    "parallel": "parallel",
    "map": "map",
    "loop": "loop",
    "wait": "wait",
    "approval": "approval",
    "workflow": "workflow",
    "send": "send",
    "end": "end",
}


def _branch(step: StepSpec, inner: list[Block]) -> plan.BranchSpec | None:
    if step.branch is None:
        return None
    return plan.BranchSpec(conditions=tuple(case.when for case in step.branch), blocks=tuple(inner))


def _parallel(step: StepSpec, inner: list[Block]) -> plan.ParallelSpec | None:
    spec = step.parallel
    if spec is None:
        return None
    wait = {"all": None, "any": 1}.get(spec.wait) if isinstance(spec.wait, str) else spec.wait
    return plan.ParallelSpec(blocks=tuple(inner), wait=wait, collect=spec.on_failure == "collect")


def _map(step: StepSpec, inner: list[Block]) -> plan.MapSpec | None:
    spec = step.map
    if spec is None:
        return None
    return plan.MapSpec(
        over=whole_expression(spec.over) or spec.over,
        body=inner[0],
        variable=spec.variable,
        concurrency=spec.concurrency,
        max_items=spec.max_items,
        collect=spec.on_failure == "collect",
    )


def _loop(step: StepSpec, inner: list[Block]) -> plan.LoopSpec | None:
    spec = step.loop
    if spec is None:
        return None
    return plan.LoopSpec(
        body=inner[0],
        while_=spec.while_,
        until=spec.until,
        max_iterations=spec.max_iterations,
        on_limit=spec.on_limit,
    )


def _wait(step: StepSpec) -> plan.WaitSpec | None:
    spec = step.wait
    if spec is None:
        return None
    signal = spec.signal
    return plan.WaitSpec(
        seconds=_whole(spec.for_),
        until=spec.until,
        signal=signal.name if signal is not None else None,
        match=signal.match if signal is not None else None,
        correlation=signal.correlation if signal is not None else None,
        timeout_seconds=spec.timeout,
        on_timeout=spec.on_timeout,
    )


def _whole(seconds: float | str | None) -> float | str | None:
    """Write whole seconds as integers, as people do."""
    if isinstance(seconds, float) and math.floor(seconds) == seconds:
        return int(seconds)
    return seconds


def _approval(step: StepSpec) -> plan.ApprovalSpec | None:
    spec = step.approval
    if spec is None:
        return None
    return plan.ApprovalSpec(
        message=spec.message,
        role=spec.role,
        expires_seconds=spec.expires,
        on_reject=spec.on_reject,
    )


def _send(step: StepSpec) -> plan.SendSpec | None:
    spec = step.send
    if spec is None:
        return None
    return plan.SendSpec(
        name=spec.name,
        run_id=spec.to.run,
        correlation=spec.to.correlation,
        session_id=spec.to.session,
        payload=spec.payload,
    )


def _end(step: StepSpec) -> plan.EndSpec | None:
    spec = step.end
    if spec is None:
        return plan.EndSpec() if step.work == "end" else None
    return plan.EndSpec(status=spec.status, output=spec.output, message=spec.message)
