"""Nodes: the steps of a workflow as the engine executes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypedDict

from pydantic import JsonValue

from penstock.contracts import plan
from penstock.contracts.plan import (
    AgentNode,
    ApprovalNode,
    Block,
    BranchNode,
    CompiledTool,
    EndNode,
    LoopNode,
    MapNode,
    Node,
    ParallelNode,
    SendNode,
    ToolNode,
    TransformNode,
    WaitNode,
    WorkflowNode,
)
from penstock.expressions.templates import whole_expression
from penstock_registry.core.blocks import Inner, blocks_of, needs_of, undo_id
from penstock_registry.core.requests import call_of
from penstock_registry.core.steps import (
    ApprovalStep,
    ChildStep,
    EndStep,
    HttpRequest,
    LoopStep,
    MapStep,
    OnError,
    ParallelStep,
    SendStep,
    StepSpec,
    UndoSpec,
    WaitStep,
)

Pin = Callable[[ChildStep], plan.ChildSpec]
"""Gives the exact plan of a child run."""

RUN_INPUT: Final = "{{ input }}"


class Builder:
    """Makes nodes of steps, and the tools that only they call."""

    def __init__(self, used: Iterable[str], pin: Pin) -> None:
        """Start with no nodes.

        Args:
            used: Names of the plan's other tools.
            pin: Gives the exact plan of a child run.
        """
        self.tools: dict[str, CompiledTool] = {}
        self._used = {name.lower() for name in used}
        self._pin = pin

    def nodes(self, steps: Sequence[StepSpec]) -> tuple[Node, ...]:
        """Return the nodes of a block's steps."""
        needs = needs_of(steps)
        return tuple(self._node(step, needs[index]) for index, step in enumerate(steps))

    def _node(self, step: StepSpec, needs: tuple[str, ...]) -> Node:
        undo = step.compensate
        common: _Common = {
            "id": step.id,
            "needs": needs,
            "when": step.when,
            "on_error": step.on_error,
            "fallback": step.fallback,
            "compensate": self._undo(step.id, undo) if undo is not None else None,
        }
        if step.workflow is not None:
            given = RUN_INPUT if step.workflow.input is None else step.workflow.input
            child = self._pin(step.workflow)
            return WorkflowNode(**common, **_attempts(step), input=given, child=child)
        if step.send is not None:
            return _send(step.send, common, _attempts(step))
        if step.wait is not None:
            return _wait(step.wait, common)
        if step.approval is not None:
            return _approval(step.approval, common)
        if step.work == "transform":
            return TransformNode(**common, input=step.transform)
        if step.work == "end":
            return _end(step.end or EndStep(), common)
        return self._container(step, common) or self._called(step, common)

    def _container(self, step: StepSpec, common: _Common) -> Node | None:
        """Return the node of a step with blocks, or ``None``."""
        blocks = tuple(self._block(inner) for inner in blocks_of(step))
        if step.branch is not None:
            conditions = tuple(case.when for case in step.branch)
            return BranchNode(**common, conditions=conditions, blocks=blocks)
        if step.parallel is not None:
            return _parallel(step.parallel, blocks, common)
        if step.map is not None:
            return _map(step.map, blocks[0], common)
        if step.loop is not None:
            return _loop(step.loop, blocks[0], common)
        return None

    def _called(self, step: StepSpec | UndoSpec, common: _Common) -> AgentNode | ToolNode:
        attempts = _attempts(step)
        if step.agent is not None:
            given = RUN_INPUT if step.input is None else step.input
            return AgentNode(**common, **attempts, ref=step.agent, input=given)
        if step.http is not None:
            ref, arguments = self._request(common["id"], step.http)
            return ToolNode(**common, **attempts, ref=ref, input=arguments)
        return ToolNode(**common, **attempts, ref=step.tool or "", input=step.input)

    def _request(self, step_id: str, request: HttpRequest) -> tuple[str, JsonValue]:
        name = stem = f"http-{step_id}"
        number = 1
        while name.lower() in self._used:
            number += 1
            name = f"{stem}-{number}"
        self._used.add(name.lower())
        description = f"{request.method} {request.url}"[:200]
        self.tools[name], arguments = call_of(name, description, request)
        return name, arguments

    def _undo(self, step_id: str, undo: UndoSpec) -> AgentNode | ToolNode:
        return self._called(
            undo,
            {
                "id": undo_id(step_id, undo),
                "needs": (),
                "when": None,
                "on_error": "fail",
                "fallback": None,
                "compensate": None,
            },
        )

    def _block(self, inner: Inner) -> Block:
        return Block(name=inner.name, nodes=self.nodes(inner.steps), output=inner.output)


class _Common(TypedDict):
    """Fields of every node."""

    id: str
    needs: tuple[str, ...]
    when: JsonValue
    on_error: OnError
    fallback: JsonValue
    compensate: AgentNode | ToolNode | None


class _Attempts(TypedDict):
    """Fields of nodes whose work may be retried."""

    retry: plan.RetryPolicy | None
    timeout_seconds: float | None


def _attempts(step: StepSpec | UndoSpec) -> _Attempts:
    retry = step.retry.policy() if step.retry is not None else None
    return {"retry": retry, "timeout_seconds": step.timeout_seconds}


def _parallel(spec: ParallelStep, blocks: tuple[Block, ...], common: _Common) -> ParallelNode:
    wait = {"all": None, "any": 1}.get(spec.wait) if isinstance(spec.wait, str) else spec.wait
    collect = spec.on_failure == "collect"
    return ParallelNode(**common, blocks=blocks, wait=wait, collect=collect)


def _map(spec: MapStep, body: Block, common: _Common) -> MapNode:
    return MapNode(
        **common,
        over=whole_expression(spec.over) or spec.over,
        body=body,
        variable=spec.variable,
        concurrency=spec.concurrency,
        max_items=spec.max_items,
        collect=spec.on_failure == "collect",
    )


def _loop(spec: LoopStep, body: Block, common: _Common) -> LoopNode:
    return LoopNode(
        **common,
        body=body,
        while_=spec.while_,
        until=spec.until,
        max_iterations=spec.max_iterations,
        on_limit=spec.on_limit,
    )


def _wait(spec: WaitStep, common: _Common) -> WaitNode:
    signal = spec.signal
    return WaitNode(
        **common,
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


def _approval(spec: ApprovalStep, common: _Common) -> ApprovalNode:
    return ApprovalNode(
        **common,
        message=spec.message,
        role=spec.role,
        expires_seconds=spec.expires,
        on_reject=spec.on_reject,
    )


def _send(spec: SendStep, common: _Common, attempts: _Attempts) -> SendNode:
    return SendNode(
        **common,
        **attempts,
        name=spec.name,
        run_id=spec.to.run,
        correlation=spec.to.correlation,
        session_id=spec.to.session,
        payload=spec.payload,
    )


def _end(spec: EndStep, common: _Common) -> EndNode:
    return EndNode(**common, status=spec.status, output=spec.output, message=spec.message)
