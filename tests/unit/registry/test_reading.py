from typing import Any

import pytest
from pydantic import JsonValue

from penstock.contracts.errors import RejectedError
from penstock.contracts.rpc import DocumentKind
from penstock_registry.core.documents import AgentDocument
from penstock_registry.core.reading import (
    merge_patch,
    parse_document,
    parse_documents,
    parse_endpoint,
)
from penstock_registry.core.yaml_text import MAX_DOCUMENTS, MAX_NODES


def agent(**spec: JsonValue) -> dict[str, Any]:
    return {
        "apiVersion": "penstock/v1",
        "kind": "Agent",
        "metadata": {"name": "helper"},
        "spec": {"model": "openai/gpt-5-mini", **spec},
    }


def workflow(*steps: dict[str, JsonValue]) -> dict[str, Any]:
    return {
        "apiVersion": "penstock/v1",
        "kind": "Workflow",
        "metadata": {"name": "flow"},
        "spec": {"steps": list(steps)},
    }


def faults_of(raw: JsonValue, **options: Any) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(RejectedError) as caught:
        parse_document(raw, **options)
    assert caught.value.code == "invalid_document"
    return {detail.path: (detail.message, detail.allowed) for detail in caught.value.details}


def test_document_that_is_valid_is_read_with_defaults() -> None:
    document = parse_document(agent(tools=["add"]))

    assert isinstance(document, AgentDocument)
    assert document.spec.tools == ("add",)
    assert document.spec.max_turns == 10
    assert document.spec.queue == "default"


def test_document_with_many_faults_names_each_with_its_place() -> None:
    raw = workflow(
        {"id": "a-b", "agent": "x"},
        {"id": "fine", "tool": "no spaces", "timeout_seconds": -1},
        {"agent": "x"},
    )
    raw["apiVersion"] = "penstock/v2"
    raw["metadata"]["title"] = "?"

    faults = faults_of(raw)

    assert faults["apiVersion"] == ("got 'penstock/v2'", "penstock/v1")
    assert faults["metadata.title"][1] == "description, labels, name"
    assert faults["spec.steps[0].id"] == ("got 'a-b'", "^[A-Za-z][A-Za-z0-9_]{0,39}$")
    assert faults["spec.steps[1].tool"][0] == "got 'no spaces'"
    assert faults["spec.steps[1].timeout_seconds"][1] == "> 0"
    assert faults["spec.steps[2].id"] == ("is missing", None)
    assert len(faults) == 6


@pytest.mark.parametrize(
    ("spec", "path", "allowed"),
    [
        (
            {"modle": "x"},
            "spec.modle",
            "endpoint, instructions, max_cost_usd, max_tokens, max_turns, model, ",
        ),
        (
            {"retry": {"max_attempt": 1}},
            "spec.retry.max_attempt",
            "factor, initial_seconds, jitter",
        ),
        ({"retry": {"retry_on": ["sometimes"]}}, "spec.retry.retry_on[0]", "rejected, transient, "),
        (
            {"script": {"turns": [{"txt": 1}]}},
            "spec.script.turns[0].txt",
            "delay_seconds, deltas, ",
        ),
        ({"max_turns": 0}, "spec.max_turns", ">= 1"),
        ({"script": {"turns": []}}, "spec.script.turns", "at least 1"),
    ],
)
def test_fault_says_what_would_be_allowed(
    spec: dict[str, JsonValue], path: str, allowed: str
) -> None:
    faults = faults_of(agent(**spec))

    assert list(faults) == [path]
    assert (faults[path][1] or "").startswith(allowed)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"kind": "Agnet"}, "got 'Agnet'"),
        ({}, "is missing"),
        ({"kind": ["Agent"]}, "got ['Agent']"),
    ],
)
def test_document_without_known_kind_names_the_kinds(raw: JsonValue, message: str) -> None:
    assert faults_of(raw) == {
        "kind": (message, "Agent, Network, Schedule, Tool, Webhook, Workflow")
    }


def test_document_of_another_kind_than_expected_is_refused() -> None:
    assert faults_of(agent(), expected=DocumentKind.TOOL) == {"kind": ("got 'Agent'", "Tool")}


def test_document_that_is_no_object_is_refused() -> None:
    assert faults_of(["Agent"], path="documents[3]") == {
        "documents[3]": ("a document must be an object", None)
    }


def test_faults_of_several_documents_are_all_found() -> None:
    text = "kind: Agent\n---\nkind: Tool\nspec: [\n"

    parsed = parse_documents([agent(modle="x"), text, {"kind": "Nothing"}, agent(), agent()])

    found = [(detail.path, detail.message) for detail in parsed.faults]
    assert [path for path, _ in found] == [
        "documents[0].spec.modle",
        "documents[1]",
        "documents[2].kind",
        "documents[4].metadata.name",
    ]
    assert found[1][1].startswith("not YAML: ")
    assert "line 5, column 1" in found[1][1]
    assert found[3][1] == "'helper' is defined twice"


def test_documents_in_one_text_are_placed_by_their_number() -> None:
    text = """
apiVersion: penstock/v1
kind: Tool
metadata: {name: add}
spec: {builtin: {}}
---
---
apiVersion: penstock/v1
kind: Agent
metadata: {name: helper}
spec: {model: scripted/x, script: {turns: [{text: hi}]}}
"""

    placed = parse_documents([text]).placed

    assert [one.path for one in placed] == ["documents[0][0]", "documents[0][1]"]
    assert placed[1].raw["metadata"] == {"name": "helper"}


@pytest.mark.parametrize(
    "documents",
    [
        [{}] * (MAX_DOCUMENTS + 1),
        ["a: 1\n---\nb: 1"] * (MAX_DOCUMENTS // 2 + 1),
        [": ["] * (MAX_DOCUMENTS + 1),
        [""] * (MAX_DOCUMENTS + 1),
    ],
)
def test_more_documents_than_one_request_may_have_are_one_fault(
    documents: list[JsonValue],
) -> None:
    parsed = parse_documents(documents)

    (fault,) = parsed.faults
    assert (fault.path, fault.allowed) == ("documents", f"at most {MAX_DOCUMENTS}")
    assert not parsed.placed


def test_values_of_all_texts_of_a_request_are_counted_together() -> None:
    half = f"a: [{'0,' * (MAX_NODES * 2 // 3)}]"

    first, second = parse_documents([half, half]).faults

    assert first.path == "documents[0][0].kind"
    assert second.path == "documents[1]"
    assert "more than" in second.message


def test_endpoint_loses_the_slash_at_its_end() -> None:
    assert parse_endpoint("http://localhost:9000/", path="endpoint") == "http://localhost:9000"
    assert parse_endpoint("https://a.example/x/", path="endpoint") == "https://a.example/x"


@pytest.mark.parametrize("url", ["localhost:9000", "ftp://a.example", "", "http://"])
def test_endpoint_that_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse_endpoint(url, path="endpoint")

    assert caught.value.details[0].path == "endpoint"


@pytest.mark.parametrize(
    ("document", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_follows_the_examples_of_rfc_7396(
    document: JsonValue, patch: JsonValue, merged: JsonValue
) -> None:
    assert merge_patch(document, patch) == merged
