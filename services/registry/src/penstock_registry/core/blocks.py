"""Blocks: how the steps of a workflow lie within and behind one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pydantic import JsonValue

from penstock_registry.core.documents import WorkflowSpec
from penstock_registry.core.steps import StepSpec, UndoSpec

MAX_BLOCKS: Final = 8
"""How many blocks may enclose a step."""
MAX_LOOPS: Final = 3
"""How many maps and loops may enclose a step, itself included."""
TIMEOUT_SECONDS: Final = 3600.0
"""Timeout of a run whose document has none."""
WAITING_SECONDS: Final = 30 * 86_400.0
"""The same where a step may wait for a person."""

_ID_LENGTH: Final = 40


class Inner(NamedTuple):
    """A block within a step."""

    name: str
    steps: Sequence[StepSpec]
    path: str
    """Where its steps stand."""
    output: JsonValue
    output_path: str
    place: str
    """Where it is named."""


def blocks_of(step: StepSpec, path: str = "") -> Iterator[Inner]:
    """Yield the blocks within a step, which stands at ``path``."""
    for index, case in enumerate(step.branch or ()):
        place = f"{path}.branch[{index}]"
        field = "else" if case.otherwise is not None else "steps"
        name = case.name or ("else" if case.otherwise is not None else f"case_{index + 1}")
        yield Inner(
            name,
            case.otherwise or case.steps or (),
            f"{place}.{field}",
            case.output,
            f"{place}.output",
            f"{place}.name" if case.name else place,
        )
    if step.parallel is not None:
        for name, block in step.parallel.branches.items():
            place = f"{path}.parallel.branches.{name}"
            yield Inner(name, block.steps, f"{place}.steps", block.output, f"{place}.output", place)
    for name, body in (("map", step.map), ("loop", step.loop)):
        if body is not None:
            place = f"{path}.{name}"
            yield Inner("body", body.steps, f"{place}.steps", body.output, f"{place}.output", place)


def every_step(spec: WorkflowSpec, path: str = "") -> Iterator[tuple[str, StepSpec]]:
    """Yield every step of a workflow with its place, those within others included."""

    def walk(steps: Iterable[StepSpec], place: str) -> Iterator[tuple[str, StepSpec]]:
        for index, step in enumerate(steps):
            here = f"{place}[{index}]"
            yield here, step
            for inner in blocks_of(step, here):
                yield from walk(inner.steps, inner.path)

    prefix = f"{path}." if path else ""
    yield from walk(spec.steps, f"{prefix}steps")
    yield from walk(spec.on_error, f"{prefix}on_error")
    yield from walk(spec.finally_, f"{prefix}finally")


def holders(spec: WorkflowSpec) -> dict[str, str]:
    """Return for each step within another one the outermost step that holds it."""
    found: dict[str, str] = {}

    def walk(steps: Iterable[StepSpec], holder: str) -> None:
        for step in steps:
            if holder:
                found[step.id] = holder
            for inner in blocks_of(step):
                walk(inner.steps, holder or step.id)

    for phase in (spec.steps, spec.on_error, spec.finally_):
        walk(phase, "")
    return found


def undo_id(step_id: str, undo: UndoSpec) -> str:
    """Return the id of a compensation."""
    return undo.id or f"{step_id[: _ID_LENGTH - 5]}_undo"


def needs_of(steps: Sequence[StepSpec]) -> list[tuple[str, ...]]:
    """Return for each step of a block, in order, the ids of those that it waits for."""
    return [
        tuple(dict.fromkeys(step.depends_on))
        if step.depends_on is not None
        else ((steps[index - 1].id,) if index else ())
        for index, step in enumerate(steps)
    ]


def ancestors(needs: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Return for each step all those that are done before it starts (itself, in a circle)."""
    found: dict[str, set[str]] = {}
    for step_id, direct in needs.items():
        known = [needed for needed in direct if needed in needs]
        if all(needed in found for needed in known):
            found[step_id] = set(known).union(*(found[needed] for needed in known))
            continue
        # Something further down is waited for: a free order, or a circle.
        seen: set[str] = set()
        waiting = known
        while waiting:
            needed = waiting.pop()
            if needed not in seen:
                seen.add(needed)
                waiting.extend(other for other in needs[needed] if other in needs)
        found[step_id] = seen
    return found


def timeout_of(spec: WorkflowSpec) -> float:
    """Return how long a run may take, in seconds."""
    if spec.timeout_seconds is not None:
        return spec.timeout_seconds
    waits = any(step.wait or step.approval for _, step in every_step(spec))
    return WAITING_SECONDS if waits else TIMEOUT_SECONDS
