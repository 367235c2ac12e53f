"""The kinds of nodes, each with the function that advances it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.contracts.plan import NodeKind
from penstock_orchestrator.core import agents, blocks, single_steps, waiting_nodes
from penstock_orchestrator.core.walk import Handler

HANDLERS: Final[Mapping[NodeKind, Handler]] = {
    "tool": single_steps.tool,
    "agent": agents.agent,
    "transform": single_steps.transform,
    "branch": blocks.branch,
    "parallel": blocks.parallel,
    "map": blocks.map_,
    "loop": blocks.loop,
    "wait": waiting_nodes.wait,
    "approval": waiting_nodes.approval,
    "workflow": single_steps.workflow,
    "send": single_steps.send,
    "end": single_steps.end,
}
