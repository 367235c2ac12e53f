"""The kinds of nodes, each with the function that advances it.

Here are also those that are one step, or none: tools, transforms, child runs, messages, the end.
"""

from __future__ import annotations

from typing import Final

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.plan import (
    AgentNode,
    ApprovalNode,
    BranchNode,
    EndNode,
    LoopNode,
    MapNode,
    Node,
    ParallelNode,
    RetryPolicy,
    SendNode,
    ToolNode,
    TransformNode,
    WaitNode,
    WorkflowNode,
)
from penstock.expressions.templates import render
from penstock.runs.state import StepState
from penstock_orchestrator.core import agents, attempts, blocks, dispatch, waiting_nodes
from penstock_orchestrator.core.budget import step_deadline
from penstock_orchestrator.core.progress import Instance, Outcome
from penstock_orchestrator.core.walk import Walk

ONCE: Final = RetryPolicy(max_attempts=1)
"""A child run retries its own steps; it is not run again unless its step says so."""


def advance(walk: Walk, instance: Instance[Node]) -> Outcome | None:
    """Advance an instance; return its outcome once it has one."""
    match instance.node:
        case ToolNode() as node:
            return tool(walk, instance.of(node))
        case AgentNode() as node:
            return agents.agent(walk, instance.of(node))
        case TransformNode() as node:
            return transform(walk, instance.of(node))
        case WorkflowNode() as node:
            return workflow(walk, instance.of(node))
        case SendNode() as node:
            return send(walk, instance.of(node))
        case EndNode() as node:
            return end(walk, instance.of(node))
        case WaitNode() as node:
            return waiting_nodes.wait(walk, instance.of(node))
        case ApprovalNode() as node:
            return waiting_nodes.approval(walk, instance.of(node))
        case node:
            return _advance_block(walk, instance.of(node))


def _advance_block(
    walk: Walk, instance: Instance[BranchNode | ParallelNode | MapNode | LoopNode]
) -> Outcome | None:
    match instance.node:
        case BranchNode() as node:
            return blocks.branch(walk, instance.of(node))
        case ParallelNode() as node:
            return blocks.parallel(walk, instance.of(node))
        case MapNode() as node:
            return blocks.map_(walk, instance.of(node))
        case LoopNode() as node:
            return blocks.loop(walk, instance.of(node))


# -- one step, or none ---------------------------------------------------------------------------


def tool(walk: Walk, instance: Instance[ToolNode]) -> Outcome | None:
    """Advance a tool node."""
    compiled = walk.plan.tools[instance.node.ref]
    step = walk.state.steps.get(instance.id)
    if step is None:
        call = dispatch.node_call(walk.view, instance)
        if compiled.policy != "allow":
            gate = waiting_nodes.gate(walk, instance, instance.id, call)
            if gate is not None:
                return gate if gate.status == "failed" else None
        if compiled.client:
            return waiting_nodes.client_tool(walk, instance, instance.id, call)
        planned = dispatch.tool_step(walk.view, instance, call, instance.id, 1, walk.now)
        attempts.order(walk, instance, planned)
        return None
    return outcome(walk, instance, step, instance.node.retry or compiled.retry)


def outcome(
    walk: Walk,
    instance: Instance[ToolNode | WorkflowNode | SendNode],
    step: StepState,
    policy: RetryPolicy,
) -> Outcome | None:
    """Advance a node that is one step: return its outcome, or schedule its next attempt."""
    if step.status == "succeeded":
        return Outcome("succeeded", step.output)
    if step.status == "unknown":
        return waiting_nodes.resolution(walk, instance, step)
    if step.status in ("failed", "waiting"):
        verdict = attempts.again(walk, instance, step, policy)
        if verdict == "failed":
            error = dispatch.step_error(step.step_id, step.attempt, step.error)
            return walk.fail(instance, error)
        if verdict == "now" and step.wait is not None:
            attempts.retry(walk, instance, step, step.wait.next_attempt)
    return None


def transform(walk: Walk, instance: Instance[TransformNode]) -> Outcome | None:
    """Compute the output from the template."""
    return walk.done(instance, render(instance.node.input, walk.scope(instance)))


def workflow(walk: Walk, instance: Instance[WorkflowNode]) -> Outcome | None:
    """Advance a child run."""
    step = walk.state.steps.get(instance.id)
    if step is not None:
        return outcome(walk, instance, step, instance.node.retry or ONCE)
    attempts.begin_child(walk, instance, 1)
    return None


def send(walk: Walk, instance: Instance[SendNode]) -> Outcome | None:
    """Advance a message to another run."""
    step = walk.state.steps.get(instance.id)
    if step is not None:
        return outcome(walk, instance, step, instance.node.retry or RetryPolicy())
    expires_at = step_deadline(instance.node, walk.plan, walk.state, walk.now)
    attempts.order(walk, instance, dispatch.message(walk.view, instance, 1, walk.now, expires_at))
    return None


def end(walk: Walk, instance: Instance[EndNode]) -> Outcome | None:
    """End the run, or its present phase."""
    node = instance.node
    scope = walk.scope(instance)
    output = render(node.output, scope)
    if node.status == "failed":
        message = str(render(node.message, scope)) or "a step ended the run as failed"
        error = ErrorInfo(code="ended_by_step", message=message)
        walk.ending = Outcome("failed", output, error)
    else:
        walk.ending = Outcome("succeeded", output)
    return walk.done(instance, output)
