"""Expression scopes: the names that expressions at a place of a document can read, and checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError, finding
from penstock.expressions.conditions import (
    check_condition,
    check_expression,
    check_template,
    condition_references,
)
from penstock.expressions.evaluator import references as reads
from penstock.expressions.inference import kind_at
from penstock.expressions.samples import Sample
from penstock.expressions.templates import references, show_path, split
from penstock_registry.core.places import at

RUN_ROOTS: Final = ("input", "run", "session", "steps")
"""What every step sees."""
SECRETS: Final = "secrets"
STEPS: Final = "steps"
RESERVED: Final = frozenset(
    {*RUN_ROOTS, SECRETS, "arguments", "error", "index", "iteration", "previous", "signal"}
)
"""Names that no variable may have."""

Paths = Iterable[tuple[str, tuple[str | int, ...]]]


@dataclass(frozen=True, slots=True)
class ExpressionScope:
    """What can be seen from a place.

    ``members`` says for some roots what their members are called, and which there are; the
    members of ``steps`` are those that are done by then.
    """

    roots: tuple[str, ...]
    members: Mapping[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    later: frozenset[str] = frozenset()
    """Steps that there are, but that need not be done by then."""
    around: frozenset[str] = frozenset()
    """Steps that enclose the place."""
    within: Mapping[str, str] = field(default_factory=dict)
    """Steps that are hidden in the blocks of another one: which one that is."""
    samples: Mapping[str, Sample] = field(default_factory=dict)
    """Examples of what roots stand for, to find operations that cannot work."""

    @classmethod
    def of(cls, *roots: str, **members: Iterable[str]) -> ExpressionScope:
        """See some roots, and of some of them only these members."""
        kinds = {name: (_KINDS.get(name, name), frozenset(of)) for name, of in members.items()}
        return cls(roots, kinds)

    @property
    def done(self) -> frozenset[str]:
        """The steps that are done by then."""
        return self.members[STEPS][1] if STEPS in self.members else frozenset()

    def plus(self, *roots: str, **samples: Sample) -> ExpressionScope:
        """See more roots, of some of which there are examples."""
        return replace(
            self,
            roots=tuple(dict.fromkeys((*self.roots, *roots, *samples))),
            samples={
                **{name: one for name, one in self.samples.items() if name not in roots},
                **samples,
            },
        )

    def seeing(self, steps: Iterable[str], later: Iterable[str] = ()) -> ExpressionScope:
        """See more steps; ``later`` are there, but need not be done."""
        done = self.done | frozenset(steps)
        return replace(
            self,
            members={**self.members, STEPS: ("step", done)},
            later=(self.later | frozenset(later)) - done,
        )

    def inside(self, step_id: str) -> ExpressionScope:
        """Look from within a step."""
        return replace(self, around=self.around | {step_id}, later=self.later - {step_id})

    @property
    def with_secrets(self) -> ExpressionScope:
        """See secrets, by reference."""
        return self.plus(SECRETS)


_KINDS: Final = {"arguments": "parameter", STEPS: "step"}


def template_faults(
    template: JsonValue, path: str, scope: ExpressionScope
) -> Iterator[ErrorDetail]:
    """Yield the errors of every ``{{ expression }}`` of a template."""
    for place, text in _expressions(template, path):
        try:
            found = list(references(text, place))
        except RejectedError as error:
            yield from error.details
            continue
        wrong = [*path_faults(found, scope), *check_template(text, place, scope.samples)]
        yield from wrong or _kind_faults(found, scope)


def _kind_faults(found: Paths, scope: ExpressionScope) -> Iterator[ErrorDetail]:
    """Yield the paths that ask a number, a text or the like for a member."""
    for place, parts in found:
        for depth in range(1, len(parts)):
            kind = kind_at(parts[:depth], scope.samples)
            if kind not in ("any", "map" if isinstance(parts[depth], str) else "list"):
                message = f"{show_path(parts[:depth])} is a {kind} and has no {parts[depth]!r}"
                yield finding(place, message)
                break


def expression_faults(expression: str, path: str, scope: ExpressionScope) -> Iterator[ErrorDetail]:
    """Yield the errors of an expression."""
    wrong = list(check_expression(expression, path, scope.samples))
    yield from wrong or path_faults(((path, read) for read in reads(expression)), scope)


def condition_faults(
    condition: JsonValue, path: str, scope: ExpressionScope
) -> Iterator[ErrorDetail]:
    """Yield the errors of a condition."""
    wrong = list(check_condition(condition, path, scope.samples))
    if wrong:
        yield from wrong
    else:
        yield from path_faults(((path, read) for read in condition_references(condition)), scope)


def _expressions(template: JsonValue, path: str) -> Iterator[tuple[str, str]]:
    """Yield every single template in the strings of a JSON value with its place."""
    if isinstance(template, str):
        for part, is_template in split(template):
            if is_template:
                yield path, f"{{{{ {part} }}}}"
    elif isinstance(template, dict):
        for key, value in template.items():
            yield from _expressions(value, at(path, key))
    elif isinstance(template, list):
        for index, value in enumerate(template):
            yield from _expressions(value, f"{path}[{index}]")


def path_faults(found: Paths, scope: ExpressionScope) -> Iterator[ErrorDetail]:
    """Yield the errors of paths that are read at some places."""
    for place, parts in found:
        root = str(parts[0])
        if root not in scope.roots:
            yield finding(place, f"there is no {root!r} here", ", ".join(scope.roots))
            continue
        kind, known = scope.members.get(root, ("", frozenset[str]()))
        if not kind:
            continue
        member = str(parts[1]) if len(parts) > 1 else None
        if member is None:
            if root == STEPS:
                yield finding(place, "steps has no value by itself", "steps.ID.output")
            continue
        if member in known:
            if root == STEPS and len(parts) > 2 and parts[2] not in STEP_FIELDS:
                yield finding(
                    place,
                    f"a step has no {str(parts[2])!r}",
                    ", ".join(f"steps.{member}.{name}" for name in STEP_FIELDS),
                )
            continue
        allowed = ", ".join(sorted(known)) or f"no {kind}"
        yield finding(place, _unseen(kind, member, scope), allowed)


STEP_FIELDS: Final = ("output", "status", "error")
"""What can be read of a step that is done."""


def _unseen(kind: str, member: str, scope: ExpressionScope) -> str:
    if kind != "step":
        return f"there is no {kind} {member!r}"
    if member in scope.later:
        return f"step {member!r} need not be done by then; name it in depends_on"
    if member in scope.around:
        return f"step {member!r} encloses this place, it is not done by then"
    if member in scope.within:
        holder = scope.within[member]
        return f"step {member!r} is hidden in {holder!r}; read steps.{holder}.output"
    return f"there is no step {member!r}"
