import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from penstock.contracts.rpc import DocumentKind
from penstock_registry.core.schemas import json_schemas

ROOT = Path(__file__).parents[3]
SCHEMAS = json_schemas()
FILES = [*ROOT.glob("examples/*.yaml"), *ROOT.glob("examples/templates/*.yaml")]


def documents() -> list[Any]:
    texts = [file.read_text(encoding="utf-8") for file in FILES]
    for page in ("workflows.md", "networks.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        texts += re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    return [document for text in texts for document in yaml.safe_load_all(text)]


def faults(document: dict[str, Any]) -> list[str]:
    checker = Draft202012Validator(SCHEMAS[DocumentKind(document["kind"].lower())])
    return [error.json_path for error in checker.iter_errors(document)]


def test_schemas_are_there_for_every_kind_and_are_schemas() -> None:
    assert set(SCHEMAS) == set(DocumentKind)
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("document", documents(), ids=lambda one: str(one["metadata"]["name"]))
def test_schema_accepts_every_example(document: dict[str, Any]) -> None:
    assert faults(document) == []


@pytest.mark.parametrize(
    "step",
    [
        {"id": "a"},
        {"id": "a", "transform": 1, "agent": "b"},
        {"id": "a-b", "transform": 1},
        {"id": "a", "wait": {"for": "1h", "until": "2030-01-01T00:00:00Z"}},
        {"id": "a", "map": {"over": "input", "steps": []}},
        {"id": "a", "trnsform": 1},
        {"id": "a", "loop": {"while": "true", "steps": [{"id": "b"}]}},
        {"id": "a", "parallel": {"branches": {}}},
        {"id": "a", "approval": {"role": "boss"}},
        {"id": "a", "transform": 1, "on_error": "retry"},
    ],
)
def test_schema_refuses_a_wrong_step(step: dict[str, Any]) -> None:
    document = {
        "apiVersion": "penstock/v1",
        "kind": "Workflow",
        "metadata": {"name": "flow"},
        "spec": {"steps": [step]},
    }

    assert faults(document) != []


def test_fields_of_steps_are_described() -> None:
    step = SCHEMAS[DocumentKind.WORKFLOW]["$defs"]["StepSpec"]["properties"]

    assert step["if"]["description"].startswith("Condition; where it does not hold")
    undescribed = {name for name, field in step.items() if "description" not in field}
    assert undescribed == set()
