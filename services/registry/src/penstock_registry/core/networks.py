"""Networks: checks of the graph of a network's agents, routes and tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from penstock.contracts.errors import ErrorDetail, finding
from penstock_registry.core.catalog import Catalog
from penstock_registry.core.documents import AgentSpec, MemberSpec, NetworkDocument, NetworkSpec
from penstock_registry.core.expression_scope import ExpressionScope, template_faults
from penstock_registry.core.faults import input_faults, known_faults, repeated_faults
from penstock_registry.core.places import at

_SYSTEM: Final = ExpressionScope.of("input", "run", "session", "secrets")


def network_faults(document: NetworkDocument, catalog: Catalog, path: str) -> Iterator[ErrorDetail]:
    """Yield every fault of a network's spec, which stands at ``path``.

    Those of an agent's spec that is written in the network are the caller's to check.
    """
    spec = document.spec
    if spec.input is not None:
        yield from input_faults(spec.input, at(path, "input"))
    names = [member.name for member in spec.agents]
    yield from known_faults(spec.entry, names, "agent", at(path, "entry"))
    seen: dict[str, str] = {}
    for index, member in enumerate(spec.agents):
        place = at(path, f"agents[{index}]")
        if (twin := seen.get(member.name.lower())) is not None:
            message = f"{member.name!r} repeats {twin!r}; names are compared ignoring case"
            yield finding(f"{place}.name", message)
        seen.setdefault(member.name.lower(), member.name)
        yield from _member_faults(member, names, catalog, place)
    yield from _graph_faults(spec, path)


def _member_faults(
    member: MemberSpec, names: list[str], catalog: Catalog, path: str
) -> Iterator[ErrorDetail]:
    if member.spec is not None and member.agent is not None:
        yield finding(path, "has agent and spec", "one of agent, spec")
    elif member.spec is None:
        field = "name" if member.agent is None else "agent"
        known = catalog.names(catalog.agents)
        yield from known_faults(member.agent or member.name, known, "agent", f"{path}.{field}")
    yield from repeated_faults(member.routes, f"{path}.routes")
    for index, target in enumerate(member.routes):
        place = f"{path}.routes[{index}]"
        if target == member.name:
            yield finding(place, "an agent cannot route to itself")
        else:
            yield from known_faults(target, names, "agent", place)
    if member.responds_to == "nobody" and not member.routes:
        yield finding(
            f"{path}.routes",
            "it may neither answer nor route",
            "at least one route, or responds_to: user, caller",
        )
    yield from _tool_faults(member, catalog, path)


def _tool_faults(member: MemberSpec, catalog: Catalog, path: str) -> Iterator[ErrorDetail]:
    equipped = member.tools or ()
    yield from repeated_faults([tool.name.lower() for tool in equipped], f"{path}.tools")
    for index, one in enumerate(equipped):
        place = f"{path}.tools[{index}]"
        name = one.tool or one.name
        field = "name" if one.tool is None else "tool"
        yield from known_faults(name, catalog.names(catalog.tools), "tool", f"{place}.{field}")
        tool = catalog.tools.get(name)
        properties = tool.spec.parameters.get("properties") if tool is not None else None
        for parameter, source in one.sources.items():
            where = f"{place}.sources.{parameter}"
            if isinstance(properties, dict):
                yield from known_faults(parameter, properties, "parameter", where)
            if source.source != "agent" and source.value is None:
                yield finding(f"{where}.value", "is missing")
            yield from template_faults(source.value, f"{where}.value", _SYSTEM)


def _graph_faults(spec: NetworkSpec, path: str) -> Iterator[ErrorDetail]:
    routes: dict[str, tuple[str, ...]] = {}
    for member in spec.agents:
        routes.setdefault(member.name, tuple(one for one in member.routes if one != member.name))
    if spec.entry not in routes:
        return
    reached = _reached(spec.entry, routes)
    for index, member in enumerate(spec.agents):
        if member.name not in reached:
            yield finding(
                at(path, f"agents[{index}]"),
                f"no way leads from {spec.entry!r} to {member.name!r}",
                "agents that the entry reaches by routes",
            )
    if not any(one.responds_to == "user" and one.name in reached for one in spec.agents):
        yield finding(
            at(path, "agents"),
            "no agent answers the user",
            "responds_to: user for at least one agent",
        )
    bounded = spec.policy.max_steps or spec.policy.max_turns or spec.limits.max_steps
    circles = sorted(name for name in routes if name in _reached(name, routes, begin=False))
    if circles and spec.policy.cycles == "forbid":
        yield finding(
            at(path, "policy.cycles"),
            f"routes lead in a circle among {', '.join(circles)}",
            "allow, with max_steps or max_turns",
        )
    elif circles and not (bounded or spec.limits.max_turns):
        yield finding(
            at(path, "policy"),
            f"nothing bounds the circle among {', '.join(circles)}",
            "max_steps or max_turns",
        )


def _reached(start: str, routes: Mapping[str, tuple[str, ...]], *, begin: bool = True) -> set[str]:
    """Return the agents that routes lead to, the first one included if ``begin``."""
    found = {start} if begin else set()
    waiting = [start]
    while waiting:
        for target in routes.get(waiting.pop(), ()):
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def agent_of(member: MemberSpec, catalog: Catalog) -> tuple[str, AgentSpec]:
    """Return the description and the spec of a network's agent.

    Raises:
        KeyError: There is no such agent; the network has faults.
    """
    if member.spec is not None:
        return member.description, member.spec
    document = catalog.agents[member.agent or member.name]
    return member.description or document.metadata.description, document.spec
