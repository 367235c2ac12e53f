"""The catalogue of messages: schemas that accept what the models write."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from penstock import catalogue as schemas

GOLDEN = Path(__file__).parents[1] / "contracts" / "golden"
BY_NAME = {message.name: message for message in schemas.MESSAGES}


@pytest.mark.parametrize("message", schemas.MESSAGES, ids=lambda message: message.name)
def test_schema_is_valid_and_accepts_the_golden_message(message: schemas.Message) -> None:
    schema = schemas.schema(message)

    jsonschema.Draft202012Validator.check_schema(schema)
    files = [GOLDEN / f"{message.name}.json", *GOLDEN.glob(f"{message.name}.[0-9]*.json")]
    for file in files:
        golden = json.loads(file.read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator(schema).validate(golden)


def test_schema_of_a_fact_requires_its_type_and_tells_what_fields_mean() -> None:
    schema = schemas.schema(BY_NAME["step.result"])

    assert "type" in schema["required"]
    assert schema["properties"]["type"]["const"] == "step.result"
    assert schema["properties"]["name"]["description"] == "Agent or tool that ran."
    assert "runner_id" not in schema["required"]


def test_pages_are_an_index_and_a_schema_for_each_message() -> None:
    pages = schemas.pages()

    assert set(pages) == {"README.md", *(f"{name}.schema.json" for name in BY_NAME)}
    assert all(f"({name}.schema.json)" in pages["README.md"] for name in BY_NAME)
