"""The syntax of expressions: text in, tree out; nothing is looked up and nothing evaluated.

The language is CEL (https://github.com/google/cel-spec, ``doc/langdef.md``) over JSON. Names are
distinguished while parsing: a variable of a macro is a ``Local``, anything else a ``Name`` of the
scope. Length and depth are bounded, so a tree may be walked by recursion.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from penstock.contracts.errors import ErrorDetail, RejectedError
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
    TypeName,
    Unary,
    children,
)

MAX_CHARACTERS: Final = 2_000
"""Longest expression; longer ones belong in a tool."""
MAX_DEPTH: Final = 64
"""Deepest tree: brackets in brackets, and operators or members in a row."""


MACROS: Final = {
    "filter": (1,),
    "map": (1,),
    "all": (1, 2),
    "exists": (1, 2),
    "exists_one": (1, 2),
    "existsOne": (1, 2),
    "transformList": (2,),
    "transformMap": (2,),
    "transformMapEntry": (2,),
}
"""The numbers of variables that each may have. Two are index and element, or key and value."""
_WITH_CONDITION: Final = frozenset({"map", "transformList", "transformMap", "transformMapEntry"})
TYPE_NAMES: Final = ("bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type")
NAMESPACES: Final = ("lists", "math")
LITERALS: Final = {"true": True, "false": False, "null": None}
_RESERVED: Final = frozenset(
    {
        *("as", "break", "const", "continue", "else", "for", "function", "if", "import", "in"),
        *("let", "loop", "namespace", "package", "return", "var", "void", "while"),
    }
)
_NOT_VARIABLES: Final = frozenset(
    {*_RESERVED, *LITERALS, *TYPE_NAMES, *NAMESPACES, "steps", "secrets", "has"}
)

TOKEN: Final = re.compile(
    r"""
    (?P<string>
        (?P<prefix>(?:[rR][bB]?|[bB][rR]?)?)
        (?: \"\"\"(?P<long1>(?:[^\\"]|\\.|"(?!""))*)\"\"\"
          | '''(?P<long2>(?:[^\\']|\\.|'(?!''))*)'''
          | "(?P<short1>(?:[^"\\\r\n]|\\.)*)" | '(?P<short2>(?:[^'\\\r\n]|\\.)*)' )
    )
    | (?P<double>\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\.\d+(?:[eE][+-]?\d+)?)
    | (?P<int>0[xX][0-9a-fA-F]+[uU]?|\d+[uU]?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_SPACE: Final = re.compile(r"(?:[ \t\r\n\f]|//[^\n]*)*")
_ESCAPE: Final = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))", re.DOTALL
)
_ESCAPES: Final = dict(zip("abfnrtv\\?\"'`", "\a\b\f\n\r\t\v\\?\"'`", strict=True))
_BINDING: Final = {
    **dict.fromkeys(("||",), 1),
    **dict.fromkeys(("&&",), 2),
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in"), 3),
    **dict.fromkeys(("+", "-"), 4),
    **dict.fromkeys(("*", "/", "%"), 5),
}
_INT_MAX: Final = 2**63 - 1


def refused(reason: str, allowed: str | None = None) -> RejectedError:
    """Return the error of a text that is no expression (``invalid_expression``)."""
    detail = ErrorDetail(path="", message=reason, allowed=allowed)
    return RejectedError("invalid_expression", reason, details=(detail,))


def parse(text: str, arity: Callable[[str], tuple[int, int] | None]) -> Tree:
    """Parse an expression.

    Args:
        text: The expression.
        arity: Returns how many arguments a function takes, least and most; none for one that
            there is not.

    Raises:
        RejectedError: ``invalid_expression``: it is too long or too deep, or not in the language.
    """
    if len(text) > MAX_CHARACTERS:
        raise refused(f"it has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    parser = _Parser(text, arity)
    tree = parser.expression()
    if parser.kind != "end":
        raise parser.unexpected("an operator or the end")
    _check_depth(tree)
    return tree


def _check_depth(tree: Tree) -> None:
    waiting = [(tree, 1)]
    while waiting:
        part, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise refused(f"it is nested deeper than {MAX_DEPTH}")
        waiting.extend((child, depth + 1) for child in children(part))


def _unescaped(text: str, *, of_bytes: bool) -> str:
    def replace(found: re.Match[str]) -> str:
        *numbers, octal, other = found.groups()
        if other is not None:
            if other not in _ESCAPES:
                raise refused(
                    f"there is no escape \\{other} in strings; write \\\\ for a backslash"
                )
            return _ESCAPES[other]
        digits = next((number for number in numbers if number is not None), None)
        code = int(digits, 16) if digits is not None else int(octal, 8)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF or (of_bytes and digits and code > 255):
            raise refused(f"{found.group()} is no character")
        # A byte above 127 is marked, so that it is not taken for a character of two bytes.
        return chr(code + 0xDC00 if of_bytes and code > 127 else code)

    return _ESCAPE.sub(replace, text) if "\\" in text else text


def _string(found: re.Match[str]) -> Literal:
    prefix = found["prefix"]
    bodies = (found[name] for name in ("long1", "long2", "short1", "short2"))
    body = next(body for body in bodies if body is not None)
    of_bytes = "b" in prefix.lower()
    if "r" not in prefix.lower():
        body = _unescaped(body, of_bytes=of_bytes)
    if not of_bytes:
        return Literal(body)
    return Literal(body.encode("utf-8", "surrogateescape"))


class _Parser:
    """One token of look-ahead; each method leaves behind what it has read."""

    def __init__(self, text: str, arity: Callable[[str], tuple[int, int] | None]) -> None:
        self._text = text
        self._arity = arity
        self._end = 0
        self._depth = 0
        self._locals: list[str] = []
        self._advance()

    def _advance(self) -> None:
        space = _SPACE.match(self._text, self._end)
        self._start = space.end() if space is not None else self._end
        found = TOKEN.match(self._text, self._start)
        self.kind = "end"
        self._found = found
        self._token = ""
        if found is not None:
            self.kind = found.lastgroup or ""
            if found["string"] is not None:
                self.kind = "string"
            self._token = found.group()
            self._end = found.end()
        elif self._start < len(self._text):
            character = self._text[self._start]
            note = ": a string is not closed" if character in "\"'" else ""
            raise refused(
                f"{character!r} at character {self._start + 1} does not belong here{note}"
            )

    def unexpected(self, wanted: str) -> RejectedError:
        what = repr(self._token) if self.kind != "end" else "the end"
        return refused(f"at character {self._start + 1} there is {what} in place of {wanted}")

    def _at(self, *tokens: str) -> bool:
        return self.kind == "operator" and self._token in tokens

    def _take(self, token: str) -> bool:
        if not self._at(token):
            return False
        self._advance()
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise self.unexpected(repr(token))

    def expression(self) -> Tree:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise refused(f"it is nested deeper than {MAX_DEPTH}")
        tree = self._binary(1)
        if self._take("?"):
            then = self.expression()
            self._expect(":")
            tree = Conditional(tree, then, self.expression())
        self._depth -= 1
        return tree

    def _binary(self, least: int) -> Tree:
        left = self._unary()
        while True:
            operator = self._token if self.kind in ("operator", "name") else ""
            binding = _BINDING.get(operator, 0)
            if binding < least:
                return left
            self._advance()
            left = Binary(operator, left, self._binary(binding + 1))

    def _unary(self) -> Tree:
        operators: list[str] = []
        while self._at("!", "-"):
            operators.append(self._token)
            self._advance()
        if operators and operators[-1] == "-" and self.kind in ("int", "double"):
            operators.pop()
            tree = self._members(self._number(-1))
        else:
            tree = self._members(self._primary())
        for operator in reversed(operators):
            tree = Unary(operator, tree)
        return tree

    def _number(self, sign: int) -> Tree:
        token = self._token
        value: int | float
        if self.kind == "double":
            value = sign * float(token)
            if value in (float("inf"), float("-inf")):
                raise refused(f"{token} is too large for a number")
        else:
            digits = token.rstrip("uU")
            value = sign * int(digits, 16 if digits[:2] in ("0x", "0X") else 10)
            if not -_INT_MAX - 1 <= value <= _INT_MAX:
                raise refused(f"{token} is too large for an integer (64 bits)")
        self._advance()
        return Literal(value)

    def _primary(self) -> Tree:
        if self.kind in ("int", "double"):
            return self._number(1)
        if self.kind == "string" and self._found is not None:
            tree: Tree = _string(self._found)
            self._advance()
            return tree
        if self.kind == "name":
            return self._named()
        if self._take("("):
            tree = self.expression()
            self._expect(")")
            return tree
        if self._take("["):
            return ListOf(self._sequence("]"))
        if self._take("{"):
            return self._map()
        raise self.unexpected("a value")

    def _sequence(self, close: str) -> tuple[Tree, ...]:
        items: list[Tree] = []
        while not self._take(close):
            items.append(self.expression())
            if not self._at(close):
                self._expect(",")
        return tuple(items)

    def _map(self) -> Tree:
        pairs: list[tuple[Tree, Tree]] = []
        while not self._take("}"):
            key = self.expression()
            self._expect(":")
            pairs.append((key, self.expression()))
            if not self._at("}"):
                self._expect(",")
        return MapOf(tuple(pairs))

    def _named(self) -> Tree:
        name = self._token
        at = self._start + 1
        self._advance()
        if name in LITERALS:
            return Literal(LITERALS[name])
        if name in _RESERVED:
            raise refused(f"{name!r} at character {at} is a reserved word")
        if name in self._locals:
            slot = len(self._locals) - 1 - self._locals[::-1].index(name)
            return Local(name, slot)
        if name in NAMESPACES and self._take("."):
            name = f"{name}.{self._member_name()}"
            if not self._at("("):
                raise self.unexpected("'('")
        if self._take("("):
            return self._call(name, ())
        if name in TYPE_NAMES:
            return Literal(TypeName(name))
        return Name(name)

    def _member_name(self) -> str:
        if self.kind != "name":
            raise self.unexpected("a name")
        name = self._token
        self._advance()
        return name

    def _members(self, tree: Tree) -> Tree:
        while True:
            if self._take("."):
                name = self._member_name()
                if not self._take("("):
                    tree = Member(tree, name)
                elif name in MACROS:
                    tree = self._macro(name, tree)
                else:
                    tree = self._call(name, (tree,))
            elif self._take("["):
                key = self.expression()
                self._expect("]")
                named = isinstance(key, Literal) and isinstance(key.value, str)
                tree = Member(tree, str(key.value)) if named else Index(tree, key)  # type: ignore[union-attr]
            else:
                return tree

    def _call(self, name: str, receiver: tuple[Tree, ...]) -> Tree:
        arguments = receiver + self._sequence(")")
        if name == "has" and not receiver:
            if len(arguments) != 1 or not isinstance(arguments[0], Member):
                raise refused("has() takes one path to a member, such as has(input.city)")
            return Has(arguments[0])
        takes = self._arity(name)
        if takes is None:
            raise refused(f"there is no function {name!r}; docs/expressions.md lists them")
        least, most = takes
        if not least <= len(arguments) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise refused(f"{name}() takes {wanted} arguments (what stands before the dot is one)")
        return Call(name, arguments)

    def _macro(self, function: str, items: Tree) -> Tree:
        names = [self._variable(function)]
        if MACROS[function] == (2,) or (2 in MACROS[function] and self._comma_follows()):
            names.append(self._variable(function))
            if names[0] == names[1]:
                raise refused(f"the variables of {function}() have the same name {names[0]!r}")
        slot = len(self._locals)
        self._locals += names
        parts = self._sequence(")")
        del self._locals[slot:]
        if not parts or len(parts) > (2 if function in _WITH_CONDITION else 1):
            takes, shown = ("two variables", "i, x") if len(names) == 2 else ("a variable", "x")
            raise refused(f"{function}() takes {takes} and an expression: {function}({shown}, ...)")
        where = parts[0] if len(parts) > 1 else None
        return Macro(function, items, slot, len(names), parts[-1], where)

    def _variable(self, function: str) -> str:
        """Read the name of a variable and the comma behind it."""
        name = self._member_name()
        if name in _NOT_VARIABLES:
            raise refused(f"{name!r} cannot be the name of a variable in {function}()")
        self._expect(",")
        return name

    def _comma_follows(self) -> bool:
        """Return whether the token is a name and the next one a comma."""
        space = _SPACE.match(self._text, self._end)
        end = space.end() if space is not None else self._end
        return self.kind == "name" and self._text[end : end + 1] == ","
