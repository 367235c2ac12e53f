"""Trees of expressions: the kinds of nodes, and a walk over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant; for names of types a ``TypeName``."""

    value: object


@dataclass(frozen=True, slots=True)
class TypeName:
    """What ``type(x)`` gives."""

    name: str


@dataclass(frozen=True, slots=True)
class Name:
    """A name of the scope, such as ``input``."""

    name: str


@dataclass(frozen=True, slots=True)
class Local:
    """A variable of a macro; ``slot`` counts the variables of the macros around it."""

    name: str
    slot: int


@dataclass(frozen=True, slots=True)
class Member:
    """``target.name``, or ``target["name"]``."""

    target: Tree
    name: str


@dataclass(frozen=True, slots=True)
class Index:
    """``target[key]`` for any key but a literal string."""

    target: Tree
    key: Tree


@dataclass(frozen=True, slots=True)
class Has:
    """``has(target.name)``: whether the member is there."""

    member: Member


@dataclass(frozen=True, slots=True)
class Call:
    """``function(...)`` or ``first.function(...)``; the receiver is the first argument."""

    function: str
    arguments: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Unary:
    """``!x`` or ``-x``."""

    operator: str
    operand: Tree


@dataclass(frozen=True, slots=True)
class Binary:
    """Two operands, ``&&`` and ``||`` included."""

    operator: str
    left: Tree
    right: Tree


@dataclass(frozen=True, slots=True)
class Conditional:
    """``test ? then : otherwise``."""

    test: Tree
    then: Tree
    otherwise: Tree


@dataclass(frozen=True, slots=True)
class ListOf:
    """``[a, b]``."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class MapOf:
    """``{key: value}``."""

    pairs: tuple[tuple[Tree, Tree], ...]


@dataclass(frozen=True, slots=True)
class Macro:
    """``items.map(x, body)`` and its like; ``where`` is the middle part of a map of three."""

    function: str
    items: Tree
    slot: int
    """Of the variable; of two variables that of the index or key, before that of the value."""
    variables: int
    body: Tree
    where: Tree | None


Tree = (
    Literal
    | Name
    | Local
    | Member
    | Index
    | Has
    | Call
    | Unary
    | Binary
    | Conditional
    | ListOf
    | MapOf
    | Macro
)


def children(tree: Tree) -> Iterator[Tree]:
    """Iterate over the direct parts of a tree, from left to right."""
    match tree:
        case Literal() | Name() | Local():
            return
        case Member(target, _) | Unary(_, target):
            yield target
        case Has(member):
            yield member.target
        case Index(left, right) | Binary(_, left, right):
            yield left
            yield right
        case Call(_, items) | ListOf(items):
            yield from items
        case Conditional(test, then, otherwise):
            yield from (test, then, otherwise)
        case MapOf(pairs):
            for pair in pairs:
                yield from pair
        case Macro(_, items, _, _, body, where):
            yield items
            if where is not None:
                yield where
            yield body


def walk(tree: Tree) -> Iterator[Tree]:
    """Iterate over a tree and all its parts, from left to right."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        yield part
        waiting.extend(reversed(tuple(children(part))))
