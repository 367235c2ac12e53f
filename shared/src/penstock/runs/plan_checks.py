"""Checks of a plan that this installation has not compiled: what the compiler would have refused.

A compiled plan of the registry needs none of this. A plan that arrives in a bundle may be written
by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Final

from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.json import Json
from penstock.contracts.json_schema import schema_faults
from penstock.contracts.models import model_faults, origin_of, parameter_faults
from penstock.contracts.plan import (
    AgentNode,
    Block,
    BranchNode,
    CompiledAgent,
    CompiledTool,
    EndNode,
    LoopNode,
    MapNode,
    Node,
    Plan,
    SendNode,
    ToolNode,
    WaitNode,
    WorkflowNode,
)
from penstock.expressions.conditions import check_condition, check_expression, check_template

_SCRIPTED: Final = "scripted/"


def plan_faults(plan: Plan) -> Iterator[ErrorDetail]:
    """Yield every fault of a plan: references, models, schemas, templates and conditions."""
    for name, agent in plan.agents.items():
        yield from _agent_faults(agent, plan, f"agents.{name}")
    for name, tool in plan.tools.items():
        yield from _tool_faults(tool, f"tools.{name}")
    seen: set[str] = set()
    yield from _block_faults(plan.main, plan, "nodes", seen)
    for phase, block in plan.handlers.items():
        yield from _block_faults(block, plan, phase, seen)
    if plan.input_schema is not None:
        yield from schema_faults(plan.input_schema, "input_schema")
    yield from check_template(plan.correlation, "correlation")
    if plan.concurrency is not None:
        yield from check_expression(plan.concurrency.key, "concurrency.key")


def child_digests(plan: Plan) -> frozenset[str]:
    """Return the digests of the plans that a plan's child runs execute."""
    nodes = plan.by_id.values()
    return frozenset(node.child.plan_digest for node in nodes if isinstance(node, WorkflowNode))


def _agent_faults(agent: CompiledAgent, plan: Plan, path: str) -> Iterator[ErrorDetail]:
    if agent.endpoint is not None:
        try:
            origin_of(agent.endpoint)
        except ValueError as error:
            yield finding(f"{path}.endpoint", str(error))
    elif not agent.model.startswith(_SCRIPTED):
        yield from model_faults(agent.model, f"{path}.model")
        yield from parameter_faults(agent.model, agent.parameters, f"{path}.parameters")
    yield from check_template(agent.instructions, f"{path}.instructions")
    for name in agent.tools:
        if name not in plan.tools and name not in agent.overrides:
            yield _unknown(f"{path}.tools", "tool", name, plan.tools)
    for name in agent.routes:
        if name not in plan.agents:
            yield _unknown(f"{path}.routes", "agent", name, plan.agents)
    for name, tool in agent.overrides.items():
        yield from _tool_faults(tool, f"{path}.overrides.{name}")


def _tool_faults(tool: CompiledTool, path: str) -> Iterator[ErrorDetail]:
    yield from schema_faults(tool.parameters, f"{path}.parameters")
    for name, source in tool.sources.items():
        yield from check_template(source.value, f"{path}.sources.{name}")
    if tool.approval is not None:
        yield from check_template(tool.approval.message, f"{path}.approval.message")


def _block_faults(block: Block, plan: Plan, path: str, seen: set[str]) -> Iterator[ErrorDetail]:
    """Yield the faults of a block, whose nodes need others of it, and not in a circle."""
    needs = {node.id: node.needs for node in block.nodes}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        yield finding(f"{path}.{error.args[1][0]}.needs", f"a circle: {' -> '.join(error.args[1])}")
    for node in block.nodes:
        place = f"{path}.{node.id}"
        if node.id in seen:
            yield finding(place, f"{node.id!r} is there twice")
        seen.add(node.id)
        for needed in node.needs:
            if needed not in needs:
                yield _unknown(f"{place}.needs", "node", needed, needs)
        yield from _node_faults(node, plan, place)
        if node.compensate is not None:
            yield from _node_faults(node.compensate, plan, f"{place}.compensate")
        for inner in node.blocks:
            yield from _block_faults(inner, plan, place, seen)
    yield from check_template(block.output, f"{path}.output")


def _node_faults(node: Node, plan: Plan, path: str) -> Iterator[ErrorDetail]:
    if isinstance(node, AgentNode) and node.ref not in plan.agents:
        yield _unknown(f"{path}.ref", "agent", node.ref, plan.agents)
    if isinstance(node, ToolNode) and node.ref not in plan.tools:
        yield _unknown(f"{path}.ref", "tool", node.ref, plan.tools)
    for name, condition in _conditions(node).items():
        if condition is not None:
            yield from check_condition(condition, f"{path}.{name}")
    for name, template in _templates(node).items():
        yield from check_template(template, f"{path}.{name}")
    if isinstance(node, MapNode):
        yield from check_expression(node.over, f"{path}.over")


def _conditions(node: Node) -> Mapping[str, Json]:
    match node:
        case BranchNode():
            cases = {f"conditions[{at}]": one for at, one in enumerate(node.conditions)}
            return {"when": node.when, **cases}
        case LoopNode():
            return {"when": node.when, "while": node.while_, "until": node.until}
        case WaitNode():
            return {"when": node.when, "match": node.match}
        case _:
            return {"when": node.when}


def _templates(node: Node) -> Mapping[str, Json]:
    match node:
        case WaitNode():
            return {
                "input": node.input,
                "seconds": node.seconds,
                "until": node.until,
                "correlation": node.correlation,
            }
        case SendNode():
            return {
                "input": node.input,
                "run_id": node.run_id,
                "correlation": node.correlation,
                "session_id": node.session_id,
                "payload": node.payload,
            }
        case EndNode():
            return {"input": node.input, "output": node.output, "message": node.message}
        case _:
            return {"input": node.input}


def _unknown(path: str, kind: str, name: str, known: Mapping[str, object]) -> ErrorDetail:
    allowed = ", ".join(sorted(known)[:20]) or f"no {kind}"
    return finding(path, f"there is no {kind} {name!r}", allowed)
