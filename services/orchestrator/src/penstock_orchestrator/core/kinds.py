"""The kinds of nodes, each with the function that advances it."""

from __future__ import annotations

from penstock.contracts.plan import (
    AgentNode,
    ApprovalNode,
    BranchNode,
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
from penstock_orchestrator.core import agents, blocks, single_steps, waiting_nodes
from penstock_orchestrator.core.progress import Instance, Outcome
from penstock_orchestrator.core.walk import Walk


def advance(walk: Walk, instance: Instance[Node]) -> Outcome | None:
    """Advance an instance; return its outcome once it has one."""
    match instance.node:
        case ToolNode() as node:
            return single_steps.tool(walk, instance.of(node))
        case AgentNode() as node:
            return agents.agent(walk, instance.of(node))
        case TransformNode() as node:
            return single_steps.transform(walk, instance.of(node))
        case WorkflowNode() as node:
            return single_steps.workflow(walk, instance.of(node))
        case SendNode() as node:
            return single_steps.send(walk, instance.of(node))
        case EndNode() as node:
            return single_steps.end(walk, instance.of(node))
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
