"""JSON Schemas of the documents, by which editors complete and check what users write.

Texts come from the models' sources: what stands below a field describes it. No process of a
running installation imports this module; ``make docs`` does.
"""

from __future__ import annotations

import ast
import sys
from functools import lru_cache

from penstock.catalogue import classes_of, field_texts
from penstock.contracts.rpc import DocumentKind
from penstock_registry.core.documents import MODELS
from penstock_registry.core.parts import GeneratedSchema, Part


def json_schemas() -> dict[DocumentKind, GeneratedSchema]:
    """Return the JSON Schema (2020-12) of each kind of document."""
    return {kind: _schema(kind) for kind in MODELS}


def _schema(kind: DocumentKind) -> GeneratedSchema:
    model = MODELS[kind]
    made = model.model_json_schema(by_alias=True)
    definitions = made.get("$defs", {})
    for name, definition in definitions.items():
        _describe(name, definition)
    _describe(model.__name__, made)
    made.pop("title", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Penstock {kind.value}",
        **made,
    }


def _describe(name: str, definition: GeneratedSchema) -> None:
    texts = _texts().get(name, {})
    for field, schema in definition.get("properties", {}).items():
        schema.pop("title", None)
        if field in texts:
            schema["description"] = texts[field]
    if exclusive := _exclusive().get(name):
        definition["oneOf"] = [{"required": [field]} for field in exclusive]


@lru_cache(maxsize=1)
def _exclusive() -> dict[str, tuple[str, ...]]:
    """Return the fields of which a part has exactly one, by the name of its model."""
    found: dict[str, tuple[str, ...]] = {}
    waiting: list[type[Part]] = [Part]
    while waiting:
        part = waiting.pop()
        found[part.__name__] = part.exactly_one
        waiting += part.__subclasses__()
    return found


@lru_cache(maxsize=1)
def _texts() -> dict[str, dict[str, str]]:
    """Read the texts below the fields of every model from its source, by model and field."""
    package = __name__.rpartition(".")[0]
    own = [name for name in sys.modules if name.startswith(f"{package}.")]
    classes: dict[str, ast.ClassDef] = {}
    for module in ("penstock.contracts.plan", *sorted(own)):
        classes |= {node.name: node for node in classes_of(module)}

    def texts(name: str) -> dict[str, str]:
        if (node := classes.get(name)) is None:
            return {}
        bases = [texts(base.id) for base in node.bases if isinstance(base, ast.Name)]
        inherited = {field: text for base in bases for field, text in base.items()}
        return {**inherited, **dict(field_texts(node))}

    return {name: texts(name) for name in classes}
