"""Workflows: checks of one workflow, step by step through all of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeGuard

from penstock.contracts.errors import ErrorDetail, RejectedError, finding
from penstock.expressions import evaluator
from penstock.expressions.samples import sample_of
from penstock.expressions.templates import whole_expression
from penstock_registry.core.blocks import (
    MAX_BLOCKS,
    MAX_LOOPS,
    ancestors,
    blocks_of,
    every_step,
    holders,
    needs_of,
    timeout_of,
    undo_id,
)
from penstock_registry.core.catalog import Catalog
from penstock_registry.core.documents import NetworkDocument, Runnable, WorkflowDocument
from penstock_registry.core.expression_scope import (
    RESERVED,
    RUN_ROOTS,
    ExpressionScope,
    condition_faults,
    expression_faults,
    template_faults,
)
from penstock_registry.core.faults import choice_faults, given_faults, input_faults, known_faults
from penstock_registry.core.places import at
from penstock_registry.core.requests import request_faults
from penstock_registry.core.steps import (
    CALLED,
    ChildStep,
    LoopStep,
    ParallelStep,
    StepSpec,
    UndoSpec,
)
from penstock_registry.core.waiting import waiting_faults

UNDOABLE: Final = CALLED | {"send"}
"""Kinds of work that a compensation may follow."""


class _Spot(NamedTuple):
    """Where the walk is."""

    scope: ExpressionScope
    blocks: int
    """How many blocks enclose it."""
    loops: int
    """How many maps and loops do."""
    handler: bool
    """Whether it is in ``on_error`` or ``finally``."""


def workflow_faults(
    document: WorkflowDocument, catalog: Catalog, path: str
) -> Iterator[ErrorDetail]:
    """Yield every fault of a workflow's spec, which stands at ``path``."""
    yield from _Walk(document, catalog).faults(path)


class _Walk:
    def __init__(self, document: WorkflowDocument, catalog: Catalog) -> None:
        self._name = document.metadata.name
        self._spec = document.spec
        self._catalog = catalog
        self._longest = timeout_of(document.spec)

    def faults(self, path: str) -> Iterator[ErrorDetail]:
        spec = self._spec
        samples = {}
        if spec.input is not None:
            broken = list(input_faults(spec.input, at(path, "input")))
            yield from broken
            if not broken:
                samples["input"] = sample_of(spec.input)
        base = ExpressionScope(RUN_ROOTS, within=holders(spec), samples=samples).seeing(())
        yield from self._id_faults(path)
        yield from self._block(spec.steps, at(path, "steps"), _Spot(base, 0, 0, handler=False))
        ids = [step.id for step in spec.steps]
        yield from template_faults(spec.output, at(path, "output"), base.seeing(ids))
        about = ExpressionScope(("input", "run", "session"), samples=samples)
        if spec.concurrency is not None:
            place = at(path, "concurrency.key")
            yield from expression_faults(spec.concurrency.key, place, about)
        yield from template_faults(spec.correlation, at(path, "correlation"), about)
        failed = base.seeing(ids).plus("error")
        yield from self._block(spec.on_error, at(path, "on_error"), _Spot(failed, 0, 0, True))
        after = failed.seeing(step.id for step in spec.on_error)
        yield from self._block(spec.finally_, at(path, "finally"), _Spot(after, 0, 0, True))

    def _id_faults(self, path: str) -> Iterator[ErrorDetail]:
        seen: dict[str, str] = {}
        for place, step in every_step(self._spec, path):
            found = [(f"{place}.id", step.id)]
            if step.compensate is not None:
                found.append((f"{place}.compensate.id", undo_id(step.id, step.compensate)))
            for where, name in found:
                if (twin := seen.get(name.lower())) is not None:
                    message = f"{name!r} repeats {twin!r}; ids are compared ignoring case"
                    yield finding(where, message)
                seen.setdefault(name.lower(), name)

    def _block(self, steps: Iterable[StepSpec], path: str, spot: _Spot) -> Iterator[ErrorDetail]:
        steps = tuple(steps)
        if spot.blocks > MAX_BLOCKS:
            yield finding(path, "too many blocks within blocks", f"<= {MAX_BLOCKS}")
            return
        ids = [step.id for step in steps]
        needs = needs_of(steps)
        above = ancestors(dict(zip(ids, needs, strict=True)))
        for index, step in enumerate(steps):
            place = f"{path}[{index}]"
            for position, needed in enumerate(step.depends_on or ()):
                if needed not in ids:
                    yield self._unknown_step(needed, ids, f"{place}.depends_on[{position}]", spot)
            if step.id in above[step.id]:
                circle = sorted(one for one in above[step.id] if step.id in above.get(one, ()))
                by_way = f", by way of {', '.join(circle)}" if circle != [step.id] else ""
                yield finding(f"{place}.depends_on", f"waits for itself{by_way}")
            scope = spot.scope.seeing(above[step.id] - {step.id}, ids)
            yield from self._step(step, place, spot._replace(scope=scope.inside(step.id)))

    def _unknown_step(self, name: str, ids: Iterable[str], path: str, spot: _Spot) -> ErrorDetail:
        message = f"there is no step {name!r}"
        if name in spot.scope.within or name in spot.scope.done:
            message = f"step {name!r} is in another block; only steps of the same one can be named"
        return finding(path, message, ", ".join(ids))

    def _step(self, step: StepSpec, path: str, spot: _Spot) -> Iterator[ErrorDetail]:
        yield from self._form(step, path, spot)
        if step.when is not None:
            yield from condition_faults(step.when, f"{path}.if", spot.scope)
        scope = spot.scope.with_secrets if step.tool is not None else spot.scope
        yield from template_faults(step.input, f"{path}.input", scope)
        yield from template_faults(step.fallback, f"{path}.fallback", spot.scope)
        yield from self._called(step, path, spot.scope)
        if step.work == "transform":
            yield from template_faults(step.transform, f"{path}.transform", spot.scope)
        if step.compensate is not None:
            after = spot.scope.seeing([step.id])
            yield from self._undo(step.compensate, f"{path}.compensate", after)
        yield from self._containers(step, path, spot)
        yield from waiting_faults(step, path, spot.scope, self._longest)
        if step.workflow is not None:
            yield from self._child(step.workflow, f"{path}.workflow", spot.scope)

    def _form(self, step: StepSpec, path: str, spot: _Spot) -> Iterator[ErrorDetail]:
        yield from choice_faults(step, path)
        given = step.model_fields_set
        work = step.work
        for name, kinds in (
            ("input", ("agent", "tool")),
            ("retry", tuple(sorted(CALLED))),
            ("timeout_seconds", tuple(sorted(CALLED))),
            ("compensate", tuple(sorted(UNDOABLE))),
        ):
            if work and name in given and work not in kinds:
                yield finding(
                    f"{path}.{name}",
                    f"a step of kind {work!r} has none",
                    f"steps of kind {', '.join(kinds)}",
                )
        if "fallback" in given and step.on_error != "continue":
            yield finding(
                f"{path}.fallback",
                "is never used, as the run fails with the step",
                "on_error: continue",
            )
        if work == "end" and step.on_error == "continue":
            yield finding(f"{path}.on_error", "on_error: continue has no effect on end", "fail")
        if spot.handler and work == "end":
            message = "the outcome of the run is decided before its handlers run"
            yield finding(f"{path}.end", message, "only in steps")
        if spot.handler and step.compensate is not None:
            message = "steps of handlers are not compensated"
            yield finding(f"{path}.compensate", message, "only in steps")
        try:
            evaluator.references(f"steps.{step.id}.output")
        except RejectedError:
            message = f"{step.id!r} is a word of the expression language"
            yield finding(f"{path}.id", message)

    def _called(
        self, step: StepSpec | UndoSpec, path: str, scope: ExpressionScope
    ) -> Iterator[ErrorDetail]:
        """Check what a step calls: an agent, a tool, a request."""
        catalog = self._catalog
        if step.agent is not None:
            yield from known_faults(
                step.agent, catalog.names(catalog.agents), "agent", f"{path}.agent"
            )
        if step.tool is not None:
            yield from known_faults(step.tool, catalog.names(catalog.tools), "tool", f"{path}.tool")
            tool = catalog.tools.get(step.tool)
            if tool is not None:
                sources = tool.spec.sources.items()
                provided = {name for name, source in sources if source.source != "agent"}
                place = f"{path}.input"
                yield from given_faults(step.input, tool.spec.parameters, place, provided)
        if step.http is not None:
            yield from request_faults(step.http, f"{path}.http", scope.with_secrets)

    def _undo(self, undo: UndoSpec, path: str, scope: ExpressionScope) -> Iterator[ErrorDetail]:
        yield from choice_faults(undo, path)
        if undo.http is not None and undo.input is not None:
            yield finding(f"{path}.input", "a request has none", "agent or tool")
        seen = scope.with_secrets if undo.tool is not None else scope
        yield from template_faults(undo.input, f"{path}.input", seen)
        yield from self._called(undo, path, scope)

    def _containers(self, step: StepSpec, path: str, spot: _Spot) -> Iterator[ErrorDetail]:
        scope = spot.scope
        yield from self._cases(step, path, scope)
        if step.map is not None:
            yield from self._variable(step.map.variable, f"{path}.map.as", scope)
            over = step.map.over
            yield from expression_faults(whole_expression(over) or over, f"{path}.map.over", scope)
        if step.loop is not None:
            yield from _loop_faults(step.loop, f"{path}.loop", _within(step, scope))
        if step.parallel is not None:
            yield from self._parallel(step.parallel, f"{path}.parallel")
        loops = spot.loops + (step.map is not None or step.loop is not None)
        if loops > MAX_LOOPS:
            message = "too many maps and loops within others"
            yield finding(path, message, f"<= {MAX_LOOPS}")
        inside = spot._replace(scope=_within(step, scope), blocks=spot.blocks + 1, loops=loops)
        names: dict[str, str] = {}
        for inner in blocks_of(step, path):
            if (twin := names.get(inner.name.lower())) is not None:
                message = f"{inner.name!r} repeats {twin!r}; names are compared ignoring case"
                yield finding(inner.place, message)
            names.setdefault(inner.name.lower(), inner.name)
            yield from self._block(inner.steps, inner.path, inside)
            after = inside.scope.seeing(one.id for one in inner.steps)
            yield from template_faults(inner.output, inner.output_path, after)

    def _cases(self, step: StepSpec, path: str, scope: ExpressionScope) -> Iterator[ErrorDetail]:
        for index, case in enumerate(step.branch or ()):
            place = f"{path}.branch[{index}]"
            yield from choice_faults(case, place)
            if case.when is not None:
                yield from condition_faults(case.when, f"{place}.if", scope)
                if case.steps is None:
                    yield finding(f"{place}.steps", "is missing")
            if case.otherwise is not None:
                if case.steps is not None:
                    message = "else has its steps behind it"
                    yield finding(f"{place}.steps", message)
                if step.branch is not None and index + 1 != len(step.branch):
                    message = "no case after it could be chosen"
                    yield finding(f"{place}.else", message, "last")

    def _variable(self, name: str, path: str, scope: ExpressionScope) -> Iterator[ErrorDetail]:
        try:
            usable = evaluator.references(name) == ((name,),)
        except RejectedError:
            usable = False
        if not usable or name in RESERVED:
            yield finding(path, f"{name!r} has another meaning in expressions")
        elif name in scope.roots:
            message = f"{name!r} is the item of a map around it already"
            yield finding(path, message)

    def _parallel(self, parallel: ParallelStep, path: str) -> Iterator[ErrorDetail]:
        count = len(parallel.branches)
        wait = parallel.wait
        if isinstance(wait, int) and wait > count:
            yield finding(
                f"{path}.wait",
                f"got {wait}, and there are {count} branches",
                f"all, any, 1 to {count}",
            )
        bound = self._spec.limits.max_fan_out
        if bound is not None and count > bound:
            yield finding(
                f"{path}.branches",
                f"are {count}, more than limits.max_fan_out",
                f"<= {bound}",
            )

    def _child(self, child: ChildStep, path: str, scope: ExpressionScope) -> Iterator[ErrorDetail]:
        yield from template_faults(child.input, f"{path}.input", scope)
        names = self._catalog.runnables()
        yield from known_faults(child.name, names, "workflow, network or agent", f"{path}.name")
        if child.version is None:
            called = self._catalog.runnable(child.name)
            schema = called.spec.input if _takes_input(called) else None
            if schema is not None and child.input is not None:
                yield from given_faults(child.input, schema, f"{path}.input")
            way = self._catalog.calls_back(self._name, child.name)
            if way is not None:
                by_way = f", by way of {', '.join(way)}" if way else ""
                yield finding(
                    f"{path}.name",
                    f"runs itself again{by_way}",
                    "a definition that does not, or a version that is published",
                )


def _loop_faults(loop: LoopStep, path: str, inside: ExpressionScope) -> Iterator[ErrorDetail]:
    if loop.while_ is None and loop.until is None:
        yield finding(path, "has neither while nor until", "while, until or both")
    if loop.while_ is not None:
        yield from condition_faults(loop.while_, f"{path}.while", inside)
    if loop.until is not None:
        seen = inside.seeing(one.id for one in loop.steps)
        yield from condition_faults(loop.until, f"{path}.until", seen)


def _within(step: StepSpec, scope: ExpressionScope) -> ExpressionScope:
    """Return what the blocks of a step see beyond the step itself."""
    if step.map is not None:
        return scope.plus(step.map.variable).plus(index=0)
    if step.loop is not None:
        return scope.plus("previous").plus(iteration=0)
    return scope


def _takes_input(document: Runnable | None) -> TypeGuard[WorkflowDocument | NetworkDocument]:
    return isinstance(document, WorkflowDocument | NetworkDocument)
