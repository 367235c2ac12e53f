"""Static types of expressions: the kinds of its parts, and what cannot be.

Only what would fail whatever the data are is reported: a kind that is open fits everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.expressions import functions
from penstock.expressions.evaluator import Path, compute, show, tree_of
from penstock.expressions.patterns import check_pattern
from penstock.expressions.samples import Sample, Unknown
from penstock.expressions.times import TIMES, zone_of
from penstock.expressions.tree import (
    Binary,
    Call,
    Conditional,
    Has,
    Index,
    ListOf,
    Literal,
    Local,
    Macro,
    MapOf,
    Member,
    Name,
    Tree,
    Unary,
    children,
    walk,
)
from penstock.expressions.values import OPERATIONS, article, kind_of, no_operation

_SAME_ITEMS: Final = frozenset({"distinct", "reverse", "slice", "sort"})
_CHECKED: Final[dict[str, Callable[[str], object]]] = {
    "matches": check_pattern,
    **dict.fromkeys(TIMES, zone_of),
}
"""Functions of two arguments, and the checks of the second one where it is a constant."""
_TAKES: Final[dict[str, tuple[str, ...]]] = {
    "map": (),
    "transformList": (),
    "transformMap": (),
    "transformMapEntry": ("map",),
}
"""The kinds that the last part of a macro may have, of others ``bool``; any if there are none."""
_ONE_ITEM: Final = frozenset({"first", "last"})


@dataclass(frozen=True, slots=True)
class Type:
    """A kind of values, or ``any``, with the known types of its elements and members."""

    kind: str = "any"
    items: Type | None = None
    members: Mapping[str, Type] = field(default_factory=dict)

    def element(self) -> Type:
        """Return the type of the elements of a list."""
        return self.items or ANY


ANY: Final = Type()


def type_of(sample: Sample) -> Type:
    """Return the type of a sample."""
    if isinstance(sample, Unknown):
        return ANY
    kind = kind_of(sample)
    if isinstance(sample, list):
        return Type(kind, items=type_of(sample[0]) if len(sample) == 1 else ANY)
    if isinstance(sample, Mapping):
        return Type(kind, members={str(key): type_of(value) for key, value in sample.items()})
    return Type(kind)


def kind_at(path: Path, samples: Mapping[str, Sample]) -> str:
    """Return the kind of what a path leads to, or ``any``."""
    found = type_of(samples[str(path[0])]) if path[0] in samples else ANY
    for part in path[1:]:
        found = found.element() if isinstance(part, int) else found.members.get(part, ANY)
    return found.kind


def _joint(types: list[Type]) -> Type:
    if not types:
        return ANY
    if all(found == types[0] for found in types):
        return types[0]
    kinds = {found.kind for found in types}
    return Type(kinds.pop()) if len(kinds) == 1 else ANY


def infer(
    expression: str, samples: Mapping[str, Sample] | None = None
) -> tuple[str, list[ErrorDetail]]:
    """Return the kind of an expression's value, or ``any``, and its errors.

    Args:
        expression: CEL.
        samples: Examples of what names of the scope stand for; a name without one may be
            anything.

    Raises:
        RejectedError: ``invalid_expression``.
    """
    tree = tree_of(expression)
    inference = _Inference({name: type_of(sample) for name, sample in (samples or {}).items()})
    kind = inference.type(tree).kind
    inference.constants(tree)
    found = {detail.message: detail for detail in inference.found}
    return kind, list(found.values())


class _Inference:
    def __init__(self, names: Mapping[str, Type]) -> None:
        self._names = names
        self._locals: list[Type] = []
        self.found: list[ErrorDetail] = []

    def _report(self, message: str, allowed: str | None = None) -> None:
        self.found.append(ErrorDetail(path="", message=message, allowed=allowed))

    def constants(self, tree: Tree) -> None:
        """Compute what depends on no data, so that ``1 / 0`` is found."""
        if not any(isinstance(part, Name | Local) for part in walk(tree)):
            try:
                compute(tree)
            except RejectedError as error:
                self._report(error.message, error.details[0].allowed if error.details else None)
            return
        for child in children(tree):
            self.constants(child)

    def type(self, tree: Tree) -> Type:  # noqa: C901 - one case for each kind of tree
        match tree:
            case Literal(value):
                return Type(kind_of(value))
            case Name(name):
                return self._names.get(name, ANY)
            case Local(_, slot):
                return self._locals[slot]
            case Member(target, name):
                return self._member(target, name)
            case Index(target, key):
                return self._index(target, key)
            case Has(member):
                self._member(member.target, member.name)
                return Type("bool")
            case Call(name, arguments):
                return self._call(name, arguments)
            case Unary(operator, operand):
                return self._unary(operator, operand)
            case Binary(operator, left, right):
                return self._binary(operator, left, right)
            case Conditional(test, then, otherwise):
                self._expect(test, "? :", "bool")
                return _joint([self.type(then), self.type(otherwise)])
            case ListOf(items):
                return Type("list", items=_joint([self.type(item) for item in items]))
            case MapOf(pairs):
                return self._map(pairs)
            case Macro():
                return self._macro(tree)

    def _expect(self, tree: Tree, where: str, *kinds: str) -> Type:
        found = self.type(tree)
        if found.kind not in ("any", *kinds):
            self._report(
                f"{where} takes {' or '.join(kinds)}, and this is {article(found.kind)}",
                ", ".join(kinds),
            )
            return ANY
        return found

    def _member(self, target: Tree, name: str) -> Type:
        found = self.type(target)
        if found.kind not in ("any", "map"):
            kind = article(found.kind)
            self._report(f"{show(target)} is {kind} and has no member {name!r}")
        return found.members.get(name, ANY)

    def _index(self, target: Tree, key: Tree) -> Type:
        found, at = self.type(target), self.type(key)
        if "any" not in (found.kind, at.kind) and (found.kind, at.kind) not in (
            ("list", "number"),
            ("map", "string"),
        ):
            kind = article(found.kind)
            self._report(f"{show(target)} is {kind} and takes no {at.kind} in [ ]")
        return found.element()

    def _call(self, name: str, arguments: tuple[Tree, ...]) -> Type:
        types = [self.type(argument) for argument in arguments]
        kinds = tuple(found.kind for found in types)
        gives = {overload.gives for overload in functions.fitting(name, kinds)}
        if not gives:
            self._report(*functions.no_overload(name, kinds))
        if name in _CHECKED and len(arguments) == 2:
            self._check_text(_CHECKED[name], arguments[1])
        if name in _ONE_ITEM:
            return types[0].element()
        items = types[0].element() if name in _SAME_ITEMS else None
        if name == "split":
            items = Type("string")
        return Type(gives.pop(), items=items) if len(gives) == 1 else ANY

    def _check_text(self, check: Callable[[str], object], tree: Tree) -> None:
        if isinstance(tree, Literal) and isinstance(tree.value, str):
            try:
                check(tree.value)
            except RejectedError as error:
                self._report(error.message, error.details[0].allowed if error.details else None)

    def _unary(self, operator: str, operand: Tree) -> Type:
        if operator == "!":
            self._expect(operand, "!", "bool")
            return Type("bool")
        return Type(self._expect(operand, "-", "number", "duration").kind)

    def _binary(self, operator: str, left: Tree, right: Tree) -> Type:
        if operator in ("&&", "||"):
            self._expect(left, operator, "bool")
            self._expect(right, operator, "bool")
            return Type("bool")
        if operator == "in":
            value, items = self.type(left), self._expect(right, "in", "list", "map")
            if items.kind == "map" and value.kind not in ("any", "string"):
                self._report(f"the names in a map are strings, and this is {article(value.kind)}")
            return Type("bool")
        kinds = self.type(left).kind, self.type(right).kind
        if operator in ("==", "!="):
            return Type("bool")
        results = {
            result
            for (known, *operands), (result, _) in OPERATIONS.items()
            if known == operator
            and all(kind in ("any", wanted) for kind, wanted in zip(kinds, operands, strict=True))
        }
        if not results:
            self._report(*no_operation(operator, *kinds))
        return Type(results.pop()) if len(results) == 1 else ANY

    def _map(self, pairs: tuple[tuple[Tree, Tree], ...]) -> Type:
        members: dict[str, Type] = {}
        for key, value in pairs:
            self._expect(key, "the name of a member", "string")
            found = self.type(value)
            if isinstance(key, Literal) and isinstance(key.value, str):
                members[key.value] = found
        return Type("map", members=members)

    def _macro(self, tree: Macro) -> Type:
        items = self._expect(tree.items, f"{tree.function}()", "list", "map")
        of_map, name = items.kind == "map", tree.function
        variable = Type("string") if of_map else items.element()
        if tree.variables == 2:
            key = {"map": "string", "list": "number"}.get(items.kind, "any")
            self._locals += (Type(key), ANY if of_map else items.element())
        else:
            self._locals.append(variable)
        if tree.where is not None:
            self._expect(tree.where, f"{name}()", "bool")
        takes = _TAKES.get(name, ("bool",))
        body = self._expect(tree.body, f"{name}()", *takes) if takes else self.type(tree.body)
        del self._locals[-tree.variables :]
        if name in ("map", "transformList"):
            return Type("list", items=body)
        if name == "filter":
            return Type("list", items=variable)
        return Type("map" if name.startswith("transformMap") else "bool")
