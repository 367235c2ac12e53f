"""Golden files pin the wire form. They are never edited: a new field is shown by a further file.

`golden/{message}.json` is the first of a message's files; `golden/{message}.2.json` and so on
show what was added later. All of them are read by the current models for ever.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest
from msgspec import structs
from pydantic import BaseModel, TypeAdapter

import penstock.contracts
import penstock.runs
from penstock import catalogue as schemas
from penstock.catalogue import FACTS, MESSAGES
from penstock.contracts.facts import read_fact
from penstock.contracts.plan import PLAN
from penstock.contracts.structs import MalformedError, WireStruct, tag_of

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.json"))
MODELS = {message.name: message.model for message in MESSAGES}


def message_of(file: Path) -> str:
    return re.sub(r"\.\d+$", "", file.stem)


def files_of(name: str) -> list[Path]:
    return [file for file in FILES if message_of(file) == name]


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def missing(golden: Any, written: Any, at: str = "$") -> Iterable[str]:
    """Yield each place where `written` does not say what `golden` says."""
    if isinstance(golden, dict) and isinstance(written, dict):
        for key, value in golden.items():
            if key in written:
                yield from missing(value, written[key], f"{at}.{key}")
            else:
                yield f"{at}.{key} is gone"
    elif isinstance(golden, list) and isinstance(written, list) and len(golden) == len(written):
        for index, (left, right) in enumerate(zip(golden, written, strict=True)):
            yield from missing(left, right, f"{at}[{index}]")
    elif golden != written or type(golden) is not type(written):
        yield f"{at}: {golden!r} became {written!r}"


def fields_of(model: type[BaseModel | WireStruct]) -> dict[str, bool]:
    """Return the names of a model's fields, and whether each is required."""
    if issubclass(model, WireStruct):
        fields = {field.encode_name: field.required for field in structs.fields(model)}
        return fields if tag_of(model) is None else {"type": True, **fields}
    return {key: field.is_required() for key, field in model.model_fields.items()}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_golden_files_of_a_message_exist(name: str) -> None:
    assert files_of(name), f"no tests/contracts/golden/{name}.json"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden_message_is_read_and_written_as_it_was(file: Path) -> None:
    adapter = TypeAdapter(MODELS[message_of(file)])

    written = json.loads(adapter.dump_json(adapter.validate_json(file.read_bytes())))

    assert list(missing(read(file), written)) == []


@pytest.mark.parametrize("name", sorted(MODELS))
def test_golden_files_of_a_message_show_all_its_fields(name: str) -> None:
    shown = {key for file in files_of(name) for key, value in read(file).items()}

    assert set(fields_of(MODELS[name])) - shown == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden_message_with_an_unknown_field_is_read_all_the_same(file: Path) -> None:
    adapter = TypeAdapter(MODELS[message_of(file)])

    newer = read(file) | {"added_by_a_later_version": {"x": 1}}

    assert adapter.validate_json(json.dumps(newer)) == adapter.validate_json(file.read_bytes())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_golden_message_without_its_optional_fields_is_read(name: str) -> None:
    model = MODELS[name]
    required = {key for key, needed in fields_of(model).items() if needed}

    for file in files_of(name):
        older = {key: value for key, value in read(file).items() if key in required}
        assert TypeAdapter(model).validate_json(json.dumps(older))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_golden_fact_is_told_by_its_type_alone(fact: schemas.Message) -> None:
    for file in files_of(fact.name):
        assert isinstance(read_fact(file.read_bytes()), fact.model)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_golden_fact_without_its_type_is_refused(fact: schemas.Message) -> None:
    body = read(files_of(fact.name)[0])
    del body["type"]

    with pytest.raises(MalformedError):
        read_fact(json.dumps(body))


@pytest.mark.parametrize("file", files_of("plan"), ids=lambda file: file.stem)
def test_golden_plan_read_back_keeps_its_digest(file: Path) -> None:
    plan = PLAN.validate_json(file.read_bytes())

    assert PLAN.validate_json(plan.to_bytes()).digest() == plan.digest()


def test_golden_files_belong_to_messages() -> None:
    assert {message_of(file) for file in FILES} <= set(MODELS)


def test_catalogue_names_every_model_or_the_message_it_is_part_of() -> None:
    reached: set[type[BaseModel | WireStruct]] = set()
    for message in MESSAGES:
        reach(message.model, reached)

    assert {model.__name__ for model in declared()} - {model.__name__ for model in reached} == set()


def test_catalogue_names_each_message_once() -> None:
    assert len(MODELS) == len(MESSAGES)


# Bases that nothing on the wire is by itself.
BASES = {"Record", "Fact", "WireStruct", "BaseNode", "LeafNode", "CalledNode", "BodyNode"}


def declared() -> set[type[BaseModel | WireStruct]]:
    """Return every model that is declared below `penstock.contracts`."""
    found: set[type[BaseModel | WireStruct]] = set()
    for module in pkgutil.iter_modules(penstock.contracts.__path__, "penstock.contracts."):
        found |= {
            value
            for value in vars(importlib.import_module(module.name)).values()
            if isinstance(value, type)
            and issubclass(value, (BaseModel, WireStruct))
            and value.__module__ == module.name
            and value.__name__ not in BASES
        }
    return found


def reach(kind: Any, reached: set[type[BaseModel | WireStruct]]) -> None:
    """Add a model and all models that its fields hold; models may hold themselves."""
    if isinstance(kind, type) and not get_args(kind):
        if issubclass(kind, WireStruct) and kind not in reached:
            reached.add(kind)
            for part in structs.fields(kind):
                reach(part.type, reached)
        elif issubclass(kind, BaseModel) and kind not in reached:
            reached.add(kind)
            for field in kind.model_fields.values():
                reach(field.annotation, reached)
    elif get_origin(kind) is not None or isinstance(kind, UnionType):
        for part in get_args(kind):
            reach(part, reached)
