"""Documents that tests compile, and what compiling them says."""

from typing import Any

import pytest
from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock_registry.core.catalog import Catalog
from penstock_registry.core.compiler import Artifact, compile_document
from penstock_registry.core.documents import Document
from penstock_registry.core.reading import parse_document

NUMBERS: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def document(kind: str, name: str, spec: dict[str, Any], description: str = "") -> Document:
    return parse_document(
        {
            "apiVersion": "penstock/v1",
            "kind": kind,
            "metadata": {"name": name, "description": description},
            "spec": spec,
        }
    )


def tool(name: str = "add", **spec: Any) -> Document:
    return document("Tool", name, {"builtin": {}, "parameters": NUMBERS, **spec})


def agent(name: str = "helper", **spec: Any) -> Document:
    return document("Agent", name, {"model": "openai/gpt-5-mini", **spec})


def workflow(*steps: dict[str, Any], name: str = "flow", **spec: Any) -> Document:
    return document("Workflow", name, {"steps": list(steps), **spec})


def compiled(target: Document, *others: Document) -> Artifact:
    return compile_document(target, Catalog.of([*others, target]))


def faults_of(target: Document, *others: Document) -> list[ErrorDetail]:
    with pytest.raises(RejectedError) as caught:
        compiled(target, *others)
    assert caught.value.code == "invalid_document"
    return list(caught.value.details)


def places(faults: list[ErrorDetail]) -> list[str]:
    return [fault.path for fault in faults]
