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
from penstock_orchestrator.core.progress import Outcome, Path
from penstock_orchestrator.core.walk import Walk


def advance(walk: Walk, node: Node, path: Path, iid: str) -> Outcome | None:
    """Advance one instance of a node; return its outcome once it has one."""
    match node:
        case ToolNode():
            return single_steps.tool(walk, node, path, iid)
        case AgentNode():
            return agents.agent(walk, node, path, iid)
        case TransformNode():
            return single_steps.transform(walk, node, path, iid)
        case WorkflowNode():
            return single_steps.workflow(walk, node, path, iid)
        case SendNode():
            return single_steps.send(walk, node, path, iid)
        case EndNode():
            return single_steps.end(walk, node, path, iid)
        case WaitNode():
            return waiting_nodes.wait(walk, node, path, iid)
        case ApprovalNode():
            return waiting_nodes.approval(walk, node, path, iid)
        case _:
            return _advance_block(walk, node, path, iid)


def _advance_block(
    walk: Walk, node: BranchNode | ParallelNode | MapNode | LoopNode, path: Path, iid: str
) -> Outcome | None:
    match node:
        case BranchNode():
            return blocks.branch(walk, node, path, iid)
        case ParallelNode():
            return blocks.parallel(walk, node, path, iid)
        case MapNode():
            return blocks.map_(walk, node, path, iid)
        case LoopNode():
            return blocks.loop(walk, node, path, iid)
