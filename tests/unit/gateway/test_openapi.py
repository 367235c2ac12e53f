"""The OpenAPI document: whole, and useful to generators of clients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs
import openapi_spec_validator
import pytest

from penstock_gateway.app import create_app
from penstock_gateway.core.problems import MEDIA_TYPE, STATUS_OF_CODE
from penstock_gateway.openapi import OLDER, OpenApi
from penstock_gateway.settings import GatewaySettings


@lru_cache(maxsize=1)
def document() -> OpenApi:
    return create_app(GatewaySettings()).openapi()


def operations() -> Iterator[tuple[str, OpenApi]]:
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            yield f"{method} {path}", operation


def parts(value: Any) -> Iterator[OpenApi]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from parts(one)


def target(reference: str) -> Any:
    found: Any = document()
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def test_document_is_valid() -> None:
    openapi_spec_validator.validate(document())


def test_every_reference_leads_somewhere() -> None:
    references = {part["$ref"] for part in parts(document()) if isinstance(part.get("$ref"), str)}
    assert len(references) > 100
    assert all(target(reference) is not None for reference in references)
    assert not any("$defs" in part for part in parts(document()))


def test_ids_of_operations_are_short_and_unique() -> None:
    ids = Counter(operation["operationId"] for _, operation in operations())
    assert {name for name, count in ids.items() if count > 1} == set()
    assert {name for name in ids if len(name) > 40 or not name.isidentifier()} == set()
    assert {"start_run", "get_run", "get_events", "get_agent", "agents_get_agent"} <= set(ids)


def test_every_operation_has_one_tag_that_is_described_and_a_text() -> None:
    known = {tag["name"] for tag in document()["tags"] if tag["description"]}
    used = set()
    for name, operation in operations():
        assert len(operation["tags"]) == 1, name
        assert operation["description"], name
        used.add(operation["tags"][0])
    assert used == known
    assert OLDER in known


def test_errors_are_problem_documents() -> None:
    problem = target("#/components/responses/Problem")["content"]
    assert list(problem) == [MEDIA_TYPE]
    for name, operation in operations():
        responses = operation["responses"]
        assert list(responses) == sorted(responses), name
        for status in {*responses} - {"200", "201", "202", "204", "304"}:
            if (name, status) == ("get /health", "503"):
                continue
            assert responses[status] == {"$ref": "#/components/responses/Problem"}, name
        assert "default" in responses
    documented = {int(s) for _, o in operations() for s in o["responses"] if s.isdigit()}
    assert set(STATUS_OF_CODE.values()) - documented == {405, 406}


def test_keys_are_asked_for_where_they_are_needed() -> None:
    assert document()["security"] == [{"key": []}]
    assert document()["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    public = {name for name, operation in operations() if operation.get("security") == []}
    assert public == {
        "get /health",
        "get /hooks/{tenant}/{name}",
        "post /hooks/{tenant}/{name}",
        "post /webhooks/generic",
    }
    for name, operation in operations():
        assert name in public or {"401", "403"} <= set(operation["responses"]), name


def test_json_is_the_first_form_and_has_a_schema() -> None:
    for name, operation in operations():
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            forms = list(body.get("content", {}))
            if "application/json" in forms:
                assert forms[0] == "application/json", name
    run = document()["paths"]["/v1/runs"]["post"]
    assert list(run["responses"]["200"]["content"]) == ["application/json", "text/event-stream"]
    for status in ("200", "202"):
        schema = run["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/RunView"}


@pytest.mark.parametrize("path", ["/v1/runs/{run_id}/pause", "/v1/runs/{run_id}/fork"])
def test_answer_of_what_was_done_before_is_described(path: str) -> None:
    responses = document()["paths"][path]["post"]["responses"]
    assert responses["200"]["content"] == responses["202"]["content"]


def test_texts_in_urls_are_described_as_without_nul() -> None:
    found = 0
    for name, operation in operations():
        for one in operation.get("parameters", ()):
            if one["in"] == "header":
                continue
            for form in (one["schema"], *one["schema"].get("anyOf", ())):
                if form.get("type") == "string" and not form.keys() & {"const", "enum", "format"}:
                    assert not re.search(form["pattern"], "a\0b"), (name, one["name"])
                    found += 1
    assert found > 100


def test_examples_fit_their_schemas() -> None:
    found = 0
    for part in parts(document()):
        if "example" in part and "schema" in part:
            schema = {**part["schema"], "components": document()["components"]}
            jsonschema_rs.Draft202012Validator(schema).validate(part["example"])
            found += 1
    assert found >= 5
