"""Documents with anything in the place of anything: findings, and never another exception."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock_registry.core.catalog import RUNNABLE, Catalog
from penstock_registry.core.checks import all_faults
from penstock_registry.core.compiler import compile_document
from penstock_registry.core.documents import kind_of
from penstock_registry.core.reading import parse_documents
from penstock_registry.core.yaml_text import YamlReader

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = [file.read_text(encoding="utf-8") for file in sorted(EXAMPLES.glob("*.yaml"))]
STRANGE: list[Any] = [
    *(None, True, 0, -1, 2**63, 10**25, 1e308, "", "a", "{{", "{{ }}", "{{ steps }}", "\x00"),
    *(
        "{{ 1/0 }}",
        "../..",
        "secrets",
        "P1Y",
        "999999999999999h",
        "60 * * * *",
        "$.a[?match(@,'(')]",
    ),
    *(
        "(",
        r"\p{L}",
        "http://[::1",
        "scripted/x",
        "openai/",
        "a" * 5000,
        [],
        {},
        [[]],
        [None],
        [{}],
    ),
    *({"": 1}, {"$ref": "#"}, {"$ref": "#/nope"}, {"type": "frog"}, {"secret": "X"}, {"all": []}),
    *({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, [1] * 200, {"default": {"$ref": "#"}}),
]
MARKS: tuple[str, ...] = (
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!x ",
    "\t",
    "\x00",
    "\u2028",
    "\ufeff",
    "\ud800",
    "{",
    "}",
)
MARKS += ("[", "]", "? ", ": ", "- ", "|\n", "%TAG ! x:\n", "---\n", "'", '"', r'"\ud83d"', "1e999")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(document: Any, choose: random.Random) -> Any:
    document = copy.deepcopy(document)
    for _ in range(choose.choice((1, 1, 2, 3))):
        *above, last = choose.choice([path for path in places(document) if path])
        inner = document
        for key in above:
            inner = inner[key]
        if choose.random() < 0.1:
            del inner[last]
        elif isinstance(inner, dict) and choose.random() < 0.1:
            inner[choose.choice(("x", "if", "input", "retry", "", "default"))] = {}
        else:
            inner[last] = copy.deepcopy(choose.choice(STRANGE))
    return document


@pytest.mark.parametrize("seed", range(4))
def test_strange_documents_have_findings_or_compile(seed: int) -> None:
    choose = random.Random(seed)
    documents = [one for text in TEXTS for one in YamlReader().read(text)]
    for _ in range(25):
        index = choose.randrange(len(documents))
        others = documents[:index] + documents[index + 1 :]
        parsed = parse_documents([changed(documents[index], choose), *others])
        if not all_faults(parsed, Catalog()):
            read = [placed.document for placed in parsed.placed]
            if kind_of(read[0]) in RUNNABLE:
                compile_document(read[0], Catalog.of(read))


@pytest.mark.parametrize("seed", range(4))
def test_strange_texts_have_findings(seed: int) -> None:
    choose = random.Random(seed)
    for _ in range(200):
        text = choose.choice(TEXTS)
        for _ in range(choose.choice((1, 2, 8))):
            start = choose.randrange(len(text) + 1)
            end = start + choose.choice((0, 0, 1, 5, 30))
            text = text[:start] + choose.choice(MARKS) * choose.choice((1, 1, 3, 50)) + text[end:]
        parse_documents([text])


@pytest.mark.parametrize("required", [[{}, "a"], [1], [None], {"a": 1}, "a"])
def test_call_of_a_tool_whose_schema_is_none_has_the_fault_of_the_schema(required: Any) -> None:
    head = "apiVersion: penstock/v1\nmetadata: {name: x}\n"
    step = "spec: {steps: [{id: a, tool: x, input: {b: 1}}]}\n"
    (flow,) = YamlReader().read(f"{head}kind: Workflow\n{step}")
    (tool,) = YamlReader().read(f"{head}kind: Tool\nspec: {{builtin: {{}}}}\n")
    assert isinstance(tool, dict)
    assert isinstance(tool["spec"], dict)
    tool["spec"]["parameters"] = {"type": "object", "required": required}

    faults = all_faults(parse_documents([flow, tool]), Catalog())

    assert any("not JSON Schema" in fault.message for fault in faults)
