"""Nodes that are one step, or none: tools, transforms, child runs, messages, the end."""

from __future__ import annotations

from typing import Final

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.plan import (
    EndNode,
    RetryPolicy,
    SendNode,
    ToolNode,
    TransformNode,
    WorkflowNode,
)
from penstock.expressions.templates import render
from penstock.runs.state import StepState
from penstock_orchestrator.core import attempts, dispatch, waiting_nodes
from penstock_orchestrator.core.deadlines import step_deadline
from penstock_orchestrator.core.progress import Outcome, Path
from penstock_orchestrator.core.walk import Walk

ONCE: Final = RetryPolicy(max_attempts=1)
"""A child run retries its own steps; it is not run again unless its step says so."""


def tool(walk: Walk, node: ToolNode, path: Path, iid: str) -> Outcome | None:
    """Take a tool node on."""
    compiled = walk.plan.tools[node.ref]
    step = walk.state.steps.get(iid)
    if step is None:
        call = dispatch.node_call(walk.view, node, path)
        gate = waiting_nodes.gate(walk, node, path, iid, call)
        if gate is not None:
            return gate if gate.status == "failed" else None
        if compiled.client:
            return waiting_nodes.client_tool(walk, node, path, iid, call)
        planned = dispatch.tool_step(walk.view, node, path, call, iid, 1, walk.now)
        attempts.order(walk, node, path, planned)
        return None
    return outcome(walk, node, path, step, node.retry or compiled.retry)


def outcome(
    walk: Walk,
    node: ToolNode | WorkflowNode | SendNode,
    path: Path,
    step: StepState,
    policy: RetryPolicy,
) -> Outcome | None:
    """Take a node on that is one step: its outcome, or its next attempt."""
    if step.status == "succeeded":
        return Outcome("succeeded", step.output)
    if step.status == "unknown":
        return waiting_nodes.resolution(walk, node, path, step)
    if step.status in ("failed", "waiting"):
        verdict = walk.again(node, path, step, policy)
        if verdict == "failed":
            error = dispatch.step_error(step.step_id, step.attempt, step.error)
            return walk.fail(node, path, step.step_id, error)
        if verdict == "now" and step.wait is not None:
            attempts.retry(walk, node, path, step, step.wait.next_attempt)
    return None


def transform(walk: Walk, node: TransformNode, path: Path, iid: str) -> Outcome | None:
    """Work out a value."""
    return walk.done(node, iid, render(node.input, walk.scope(node, path)))


def workflow(walk: Walk, node: WorkflowNode, path: Path, iid: str) -> Outcome | None:
    """Take a child run on."""
    step = walk.state.steps.get(iid)
    if step is not None:
        return outcome(walk, node, path, step, node.retry or ONCE)
    attempts.begin_child(walk, node, path, 1)
    return None


def send(walk: Walk, node: SendNode, path: Path, iid: str) -> Outcome | None:
    """Take a message on."""
    step = walk.state.steps.get(iid)
    if step is not None:
        return outcome(walk, node, path, step, node.retry or RetryPolicy())
    expires_at = step_deadline(node, walk.plan, walk.state, walk.now)
    attempts.order(
        walk, node, path, dispatch.message(walk.view, node, path, 1, walk.now, expires_at)
    )
    return None


def end(walk: Walk, node: EndNode, path: Path, iid: str) -> Outcome | None:
    """End the run, or its present phase."""
    scope = walk.scope(node, path)
    output = render(node.output, scope)
    if node.status == "failed":
        said = str(render(node.message, scope)) or "a step ended the run as failed"
        error = ErrorInfo(code="ended_by_step", message=said)
        walk.ending = Outcome("failed", output, error)
    else:
        walk.ending = Outcome("succeeded", output)
    return walk.done(node, iid, output)
