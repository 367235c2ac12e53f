"""Requests made of the API's own description and of values that break programs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

METHODS: Final = ("get", "post", "put", "patch", "delete")

# Raw JSON, since some of it has no value in Python.
ODD_JSON: Final = (
    *(
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "2147483648",
        "9223372036854775808",
        "18446744073709551616",
    ),
    *("1" + "0" * 30, "1" * 400, "1" * 5000, "1e308", "1e400", "-1e-400", "NaN", "-Infinity"),
    *(
        '""',
        '"\\u0000"',
        '"a\\u0000b"',
        '"\\ud800"',
        '"\\u2028\\u0085\\ufeff"',
        '"' + "x" * 70_000 + '"',
    ),
    *(
        '"{{ input }}"',
        '"{{"',
        '"{{ secrets.A }}"',
        '"{{ 1 / 0 }}"',
        '"%00"',
        '"../../x"',
        '"a.b.*.>"',
    ),
    *('"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"', '"2026-02-30T00:00:00Z"'),
    *("[]", "{}", "[[]]", '{"": {}}', '{"a": 1, "a": 2}', '{"__proto__": {"\\u0000": 1}}'),
    *("[" * 98 + "]" * 98, "[" * 250 + "]" * 250, '{"a":' * 150 + "1" + "}" * 150, "[" * 50_000),
    *('{"$ref": "#"}', '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'),
    *(
        '{"type": "object", "properties": {"a": {"$ref": "#"}}, "pattern": "("}',
        "{",
        "[1,]",
        "'a'",
        "",
    ),
    *(
        '"apiVersion: penstock/v1\\nkind: !!int abc\\n"',
        '"a: &a [*a]"',
        '"- !!timestamp 2001-13-45"',
    ),
)
ODD_TEXT: Final = (
    *("", "\0", "a\0b", "%", "../..", "a.b", "*", ">", "x" * 5_000, "é", "\u2028", "𝄞", "-1", "0"),
    *("99999999999999999999999", "1e400", "NaN", "true", "null", "0001-01-01T00:00:00+14:00"),
    *("9999-12-31T23:59:59-14:00", "2026-01-01", "WyJjcmVhdGVkLmRlc2MiLDFd", "W10", "bnVsbA", "="),
    *("WyJjcmVhdGVkLmRlc2MiLDFlOTk5XQ", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "a=b", "a=\0", ":"),
)
MEDIA_TYPES: Final = (*["application/json"] * 12, "application/yaml", "text/plain", "", "x/y;z=;")


@dataclass(frozen=True, slots=True)
class Request:
    """One request; its path is quoted, its body raw."""

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]


class Fuzzer:
    """Makes requests for each operation of an OpenAPI document; the same ones for the same seed."""

    def __init__(
        self,
        document: dict[str, Any],
        known: dict[str, list[str]],
        samples: dict[str, list[Any]],
        seed: int,
    ) -> None:
        """Prepare the requests.

        Args:
            document: The OpenAPI document.
            known: Values that exist, by the name of their path parameter; names at least.
            samples: Bodies that the document does not describe, by a part of their path.
            seed: Of all choices.
        """
        self._document = document
        self._known = known
        self._samples = samples
        self._random = random.Random(seed)
        self._share = 0.1

    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return method, path and description of all operations."""
        return [
            (method, path, operation)
            for path, item in sorted(self._document["paths"].items())
            for method, operation in sorted(item.items())
            if method in METHODS
        ]

    def requests(self, count: int, *, bodies: bool = False) -> Iterator[Request]:
        """Yield ``count`` requests for each operation, or each that takes a body."""
        for method, path, operation in self.operations():
            for _ in range(count if "requestBody" in operation or not bodies else 0):
                yield self._request(method, path, operation)

    def _request(self, method: str, path: str, operation: dict[str, Any]) -> Request:
        chance, query = self._random, []
        headers = {"prefer": "wait=0"}
        for parameter in operation.get("parameters", ()):
            name, text = parameter["name"], self._text(parameter["name"])
            if parameter["in"] == "path":
                path = path.replace(f"{{{name}}}", quote(text, safe="") or "x")
            elif parameter["in"] == "query" and chance.random() < 0.3:
                query.append(f"{quote(name)}={quote(text)}")
            elif parameter["in"] == "header" and chance.random() < 0.2 and text.isprintable():
                headers[name] = text.encode("ascii", "replace").decode()[:500]
        if query:
            path += "?" + "&".join(query)
        body = None
        if "requestBody" in operation:
            content = operation["requestBody"].get("content", {})
            schema: dict[str, Any] = next((one.get("schema", {}) for one in content.values()), {})
            self._share = chance.choice((0.02, 0.1))
            known = self._samples.get(path.split("/")[-1], self._samples.get(path.split("/")[-2]))
            if known and chance.random() < 0.8:
                text = self._changed(chance.choice(known), self._share / 2)
            else:
                text = self._json(schema, 0)
            body = text.encode("utf-8", "surrogatepass")
            headers["content-type"] = chance.choice(MEDIA_TYPES)
        return Request(method.upper(), path, body, headers)

    def _text(self, name: str) -> str:
        known = self._known.get(name)
        if known and self._random.random() < 0.7:
            return self._random.choice(known)
        return self._random.choice(ODD_TEXT)

    def _json(self, schema: dict[str, Any], depth: int) -> str:
        """Return JSON that mostly fits a schema."""
        chance = self._random
        if "$ref" in schema:
            schema = self._document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        if chance.random() < self._share or depth > 6:
            return chance.choice(ODD_JSON)
        for choice in ("anyOf", "oneOf", "allOf"):
            if choice in schema:
                return self._json(chance.choice(schema[choice]), depth)
        if "enum" in schema:
            return json.dumps(chance.choice(schema["enum"]))
        if "const" in schema:
            return json.dumps(schema["const"])
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                items = schema.get("items", {})
                found = [self._json(items, depth + 1) for _ in range(chance.randint(0, 2))]
                return f"[{','.join(found)}]"
            case "integer" | "number":
                return str(chance.choice([schema.get("minimum", 1), schema.get("maximum", 5)]))
            case "boolean":
                return chance.choice(["true", "false"])
            case "string":
                return json.dumps(chance.choice(self._known["name"]))
            case _:
                return chance.choice(ODD_JSON)

    def _changed(self, value: Any, share: float) -> str:
        """Return JSON of a value with odd values in some places."""
        chance = self._random
        if chance.random() < share:
            return chance.choice(ODD_JSON)
        if isinstance(value, dict):
            items = [
                f"{json.dumps(key)}:{self._changed(item, share)}" for key, item in value.items()
            ]
            return "{" + ",".join(items) + "}"
        if isinstance(value, list):
            return f"[{','.join(self._changed(item, share) for item in value)}]"
        return json.dumps(value)

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        chance = self._random
        required = schema.get("required", ())
        members = [
            f"{json.dumps(name)}:{self._json(inner, depth + 1)}"
            for name, inner in schema.get("properties", {}).items()
            if name in required or chance.random() < 0.5
        ]
        if not members or chance.random() < 0.05:
            name = chance.choice(('""', '"\\u0000"', '"\\ud800"', '"odd"', '"name"'))
            members.append(f"{name}:{chance.choice(ODD_JSON)}")
        return "{" + ",".join(members) + "}"
