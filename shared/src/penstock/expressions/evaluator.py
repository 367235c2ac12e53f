"""Expressions: CEL over the scope of a run, evaluated without I/O, clock or surprises.

The evaluator is Penstock's own, so that work, memory and the size of a result are bounded, numbers
of JSON mix, and a member is looked up only where the expression comes to it: neither a run of
10,000 steps nor a large input is converted. Compiled expressions are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final

from msgspec import structs
from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.expressions import functions
from penstock.expressions.syntax import parse, refused
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
from penstock.expressions.values import (
    Evaluation,
    Output,
    article,
    checked,
    contains,
    equal,
    failed,
    kind_of,
    operate,
    whole,
)

Path = tuple[str | int, ...]
Step = Callable[[Evaluation], Any]

_SHOWN: Final = 20
"""The number of names listed when one is not found."""


@lru_cache(maxsize=4096)
def tree_of(expression: str) -> Tree:
    """Parse an expression and check what can be seen without data.

    Raises:
        RejectedError: ``invalid_expression``, with the expression as the path of its details.
    """
    try:
        tree = parse(expression, functions.arity)
        if tree == Name("steps"):
            raise _whole_steps()
        for part in walk(tree):
            _check(part)
    except RejectedError as error:
        raise _about(expression, error) from error
    except RecursionError as error:
        raise _about(expression, refused("it is nested too deeply")) from error
    return tree


def _check(part: Tree) -> None:
    if part == Name("secrets"):
        raise refused(
            "secrets cannot be used in an expression; a secret stands alone in a template: "
            "{{ secrets.NAME }}"
        )
    if not isinstance(part, Member | Has) and Name("steps") in children(part):
        raise _whole_steps()


def _whole_steps() -> RejectedError:
    return refused(
        'name the step: steps.NAME or steps["NAME"]; steps as a whole, or one under a computed '
        "name, cannot be read"
    )


def _about(expression: str, error: RejectedError) -> RejectedError:
    shown = expression if len(expression) <= 200 else f"{expression[:200]}..."
    detail = ErrorDetail(path=shown, message=error.message)
    allowed = error.details[0].allowed if error.details else None
    return RejectedError(
        error.code,
        f"{shown}: {error.message}" + (f" (there is: {allowed})" if allowed else ""),
        details=(structs.replace(detail, allowed=allowed),),
    )


def evaluate(expression: str, scope: Mapping[str, JsonValue]) -> JsonValue:
    """Return an expression's value as JSON: times as RFC 3339 text, durations in seconds.

    Args:
        expression: CEL, see ``docs/expressions.md``.
        scope: Names and their values. A mapping that is no ``dict`` is asked for the members
            that the expression comes to, and is no value itself.

    Raises:
        RejectedError: ``invalid_expression``: it cannot be parsed; ``expression_failed``: it
            cannot be evaluated, with the reason and what there is instead.
    """
    try:
        return _value(_compiled(expression), scope)
    except RejectedError as error:
        if error.code == "invalid_expression":
            raise
        raise _about(expression, error) from error


def compute(tree: Tree) -> None:
    """Compute a part that reads nothing, to see whether it fails.

    Raises:
        RejectedError: ``expression_failed``, about the part alone.
    """
    _value(_step(tree), {}, as_json=False)


def _value(step: Step, scope: Mapping[str, JsonValue], *, as_json: bool = True) -> JsonValue:
    of = Evaluation(scope)
    try:
        value = step(of)
        return Output().json(value) if as_json else None
    except RecursionError as error:
        raise failed("its values are nested too deeply") from error
    except ArithmeticError as error:
        raise failed("a number, time or duration is out of range") from error
    finally:
        of.close()


def references(expression: str) -> tuple[Path, ...]:
    """Return every path over the scope that an expression reads, each once.

    A path goes as far as its members are literal: ``input.rows[input.n].title`` reads
    ``input.rows`` and ``input.n``. Variables of macros are not of the scope.

    Raises:
        RejectedError: ``invalid_expression``.
    """
    return tuple(dict.fromkeys(_paths(tree_of(expression))))


def _paths(tree: Tree) -> Iterator[Path]:
    path = path_of(tree.member if isinstance(tree, Has) else tree)
    if path is not None:
        yield path
        return
    for child in children(tree):
        yield from _paths(child)


def path_of(tree: Tree) -> Path | None:
    """Return the path that a tree is, if it is nothing but one."""
    match tree:
        case Name(name):
            return (name,)
        case Member(target, name):
            path = path_of(target)
            return None if path is None else (*path, name)
        case Index(target, Literal(int(index))) if index >= 0 and not isinstance(index, bool):
            path = path_of(target)
            return None if path is None else (*path, index)
        case _:
            return None


def show(tree: Tree) -> str:
    """Write a tree into a message, as far as it is a path."""
    match tree:
        case Name(name) | Local(name):
            return name
        case Member(target, name):
            return f"{show(target)}.{name}"
        case Index(target, Literal(key)):
            return f"{show(target)}[{key}]"
        case Index(target, _):
            return f"{show(target)}[...]"
        case Call(name, _):
            return f"{name}(...)"
        case _:
            return "(...)"


# From tree to closures. Each takes the evaluation and gives a value.


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> Step:
    return _step(tree_of(expression))


def _step(tree: Tree) -> Step:  # noqa: C901 - one case for each kind of tree
    match tree:
        case Literal(value):
            return lambda _: value
        case Name(name):
            return _name(name)
        case Local(_, slot):
            return lambda of: of.locals[slot]
        case Member(target, name):
            return _member(tree, _step(target), name)
        case Index(target, key):
            return _index(tree, _step(target), _step(key))
        case Has(member):
            return _has(member, _step(member.target))
        case Call(name, arguments):
            steps = tuple(_step(argument) for argument in arguments)
            return lambda of: functions.call(of, name, tuple(step(of) for step in steps))
        case Unary(operator, operand):
            return _unary(operator, _step(operand))
        case Binary(operator, left, right):
            return _binary(operator, _step(left), _step(right))
        case Conditional(test, then, otherwise):
            return _conditional(_step(test), _step(then), _step(otherwise))
        case ListOf(items):
            parts = tuple(_step(item) for item in items)
            return lambda of: [part(of) for part in parts]
        case MapOf(pairs):
            return _map(tuple((_step(key), _step(value)) for key, value in pairs))
        case Macro():
            return _macro(tree)


def _name(name: str) -> Step:
    def look_up(of: Evaluation) -> Any:
        if name not in of.scope:
            raise failed(f"there is no {name}", _known(of.scope))
        return of.scope[name]

    return look_up


def _known(mapping: Mapping[str, Any]) -> str | None:
    return ", ".join(sorted(map(str, mapping))[:_SHOWN]) or None


def _member(tree: Member, target: Step, name: str) -> Step:
    def look_up(of: Evaluation) -> Any:
        value = target(of)
        if isinstance(value, Mapping):
            if name not in value:
                raise failed(f"there is no {show(tree)}", _known(value))
            return value[name]
        kind = article(kind_of(value))
        raise failed(f"{show(tree.target)} is {kind} and has no member {name!r}")

    return look_up


def _index(tree: Index, target: Step, key: Step) -> Step:
    def look_up(of: Evaluation) -> Any:
        value, at = target(of), key(of)
        kinds = kind_of(value), kind_of(at)
        if kinds == ("list", "number"):
            index = whole(at)
            if not 0 <= index < len(value):
                raise failed(
                    f"there is no {show(tree.target)}[{index}]; it has {len(value)} elements"
                )
            return value[index]
        if kinds == ("map", "string"):
            if at not in value:
                raise failed(f"there is no {show(tree.target)}[{at[:50]!r}]", _known(value))
            return value[at]
        raise failed(f"{show(tree.target)} is {article(kinds[0])} and takes no {kinds[1]} in [ ]")

    return look_up


def _has(member: Member, target: Step) -> Step:
    def look(of: Evaluation) -> bool:
        value = target(of)
        if not isinstance(value, Mapping):
            raise failed(f"{show(member.target)} is {article(kind_of(value))} and has no members")
        return member.name in value

    return look


def truth(value: Any, where: str) -> bool:
    """Take a boolean where nothing else makes sense.

    Raises:
        RejectedError: It is none; nothing else counts as true or false.
    """
    if not isinstance(value, bool):
        raise failed(f"{where} takes true or false, and this is {article(kind_of(value))}")
    return value


def _unary(operator: str, operand: Step) -> Step:
    if operator == "!":
        return lambda of: not truth(operand(of), "!")

    def negative(of: Evaluation) -> Any:
        value = operand(of)
        if kind_of(value) not in ("number", "duration"):
            raise failed(f"- takes a number or a duration, and this is {article(kind_of(value))}")
        return -value if isinstance(value, timedelta) else checked(-value)

    return negative


def _binary(operator: str, left: Step, right: Step) -> Step:
    match operator:
        case "&&":
            return lambda of: truth(left(of), "&&") and truth(right(of), "&&")
        case "||":
            return lambda of: truth(left(of), "||") or truth(right(of), "||")
        case "==":
            return lambda of: equal(of, left(of), right(of))
        case "!=":
            return lambda of: not equal(of, left(of), right(of))
        case "in":
            return _in(left, right)
        case _:
            return lambda of: operate(of, operator, left(of), right(of))


def _in(left: Step, right: Step) -> Step:
    def look(of: Evaluation) -> bool:
        value, items = left(of), right(of)
        if isinstance(items, str):
            raise failed("in takes a list or a map; for parts of a text: text.contains(part)")
        return contains(of, items, value)

    return look


def _conditional(test: Step, then: Step, otherwise: Step) -> Step:
    return lambda of: then(of) if truth(test(of), "? :") else otherwise(of)


def _name_in_map(name: object) -> str:
    if not isinstance(name, str):
        raise failed(f"the names in a map are strings, and this is {article(kind_of(name))}")
    return name


def _map(pairs: tuple[tuple[Step, Step], ...]) -> Step:
    def make(of: Evaluation) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            name = _name_in_map(key(of))
            if name in made:
                raise failed(f"{name!r} is in the map twice")
            made[name] = value(of)
        return made

    return make


def _macro(tree: Macro) -> Step:
    items, body = _step(tree.items), _step(tree.body)
    where = _step(tree.where) if tree.where is not None else None
    cost = sum(1 for part in (tree.body, tree.where) if part is not None for _ in walk(part))
    slot, name, pairs = tree.slot, tree.function, tree.variables == 2

    def each(of: Evaluation) -> Iterator[Any]:
        values = items(of)
        kind = kind_of(values)
        if kind not in ("list", "map"):
            raise failed(f"{name}() takes a list or a map, and this is {article(kind)}")
        of.locals[slot:] = [None] * tree.variables
        if not pairs:
            for value in values:
                of.spend(cost)
                of.locals[slot] = value
                if where is None or truth(where(of), f"{name}()"):
                    yield value
            return
        for key, value in enumerate(values) if kind == "list" else values.items():
            of.spend(cost)
            of.locals[slot : slot + 2] = (key, value)
            if where is None or truth(where(of), f"{name}()"):
                yield key

    return _MACROS[name](each, body, name)


Each = Callable[[Evaluation], Iterator[Any]]
"""Sets the variables to each element in turn, and yields the element, of two variables the key."""


def _transform_list(each: Each, body: Step, _: str) -> Step:
    return lambda of: [body(of) for _ in each(of)]


def _transform_map(each: Each, body: Step, _: str) -> Step:
    return lambda of: _merged({_name_in_map(key): body(of)} for key in each(of))


def _transform_entry(each: Each, body: Step, name: str) -> Step:
    def entries(of: Evaluation) -> Iterator[Mapping[str, Any]]:
        for _ in each(of):
            entry = body(of)
            if not isinstance(entry, Mapping):
                raise failed(f"{name}() takes a map, and this is {article(kind_of(entry))}")
            of.spend(len(entry))
            yield entry

    return lambda of: _merged(entries(of))


def _merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name in made:
                raise failed(f"{name!r} is in the map twice")
            made[name] = value
    return made


def _exists_one(each: Each, body: Step, name: str) -> Step:
    return lambda of: sum(truth(body(of), f"{name}()") for _ in each(of)) == 1


_MACROS: Final[dict[str, Callable[[Each, Step, str], Step]]] = {
    "map": _transform_list,
    "filter": lambda each, body, _: (
        lambda of: [value for value in each(of) if truth(body(of), "filter()")]
    ),
    "all": lambda each, body, _: lambda of: all(truth(body(of), "all()") for _ in each(of)),
    "exists": lambda each, body, _: lambda of: any(truth(body(of), "exists()") for _ in each(of)),
    "exists_one": _exists_one,
    "existsOne": _exists_one,
    "transformList": _transform_list,
    "transformMap": _transform_map,
    "transformMapEntry": _transform_entry,
}
