"""Values that one reader on the way refuses: no run hangs, and no list fails because of them."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from tests.support.installation import Installation

DEEP = "[" * 99 + "1" + "]" * 99
"""With the body around it 100 deep."""


def post(installation: Installation, path: str, body: str) -> httpx.Response:
    headers = {"content-type": "application/json", "prefer": "wait=10"}
    return installation.client.post(path, content=body, headers=headers)


def create_workflow(installation: Installation, *steps: dict[str, Any]) -> str:
    name = f"envelope-{uuid.uuid4().hex[:12]}"
    installation.apply(
        {
            "apiVersion": "penstock/v1",
            "kind": "Workflow",
            "metadata": {"name": name},
            "spec": {"steps": list(steps)},
        }
    )
    return name


def assert_listed(installation: Installation) -> None:
    answer = installation.client.get("/v1/runs", params={"limit": 1000})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("[" + DEEP + "]", "input[0][0]"),
        ("[" * 198 + "]" * 198, "input[0][0]"),
        ('{"a": NaN}', "input.a"),
        ('{"a": [1e400]}', "input.a[0]"),
        ("1" * 5000, "input"),
        ('"\\ud800"', "input"),
    ],
)
def test_input_outside_of_the_envelope_is_refused_with_its_place(
    installation: Installation, value: str, path: str
) -> None:
    answer = post(installation, "/v1/runs", f'{{"name": "order", "input": {value}}}')
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["code"] == "invalid_request"
    assert problem["errors"][0]["path"].startswith(path)
    assert_listed(installation)


def test_deepest_value_passes_through_a_run_and_its_signals(installation: Installation) -> None:
    name = create_workflow(
        installation,
        {"id": "copy", "transform": "{{ input }}"},
        {"id": "news", "wait": {"signal": {"name": "news"}}},
    )
    answer = post(installation, "/v1/runs", f'{{"name": "{name}", "input": {DEEP}}}')
    run_id = answer.json()["run_id"]
    path = f"/v1/runs/{run_id}/signals"
    for bad, place in (("[" + DEEP + "]", "body.payload[0]"), ("[1, NaN]", "body.payload[1]")):
        refused = post(installation, path, f'{{"name": "news", "payload": {bad}}}')
        assert refused.status_code == 422, refused.text
        assert refused.json()["errors"][0]["path"].startswith(place)
    assert post(installation, path, f'{{"name": "news", "payload": {DEEP}}}').status_code == 202

    headers = {"prefer": "wait=10"}
    run = installation.client.get(f"/v1/runs/{run_id}", headers=headers).json()

    assert run["status"] == "done"
    assert_listed(installation)


def test_template_that_nests_deeper_in_each_iteration_fails_its_run(
    installation: Installation,
) -> None:
    nest = {"id": "nest", "transform": ["{{ previous }}"]}
    name = create_workflow(
        installation,
        {"id": "again", "loop": {"until": "false", "max_iterations": 200, "steps": [nest]}},
    )
    run = post(installation, "/v1/runs", f'{{"name": "{name}"}}').json()
    assert (run["status"], run["error"]["code"]) == ("failed", "invalid_value")
    assert "nested more than 100 deep" in run["error"]["message"]
    assert_listed(installation)


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_time_at_an_edge_of_the_calendar_is_refused(installation: Installation, at: str) -> None:
    listed = installation.client.get("/v1/runs", params={"created_before": at})
    assert (listed.status_code, listed.json()["errors"][0]["path"]) == (422, "query.created_before")
    name = create_workflow(installation, {"id": "wait", "wait": {"until": "{{ input }}"}})
    run = post(installation, "/v1/runs", f'{{"name": "{name}", "input": "{at}"}}').json()
    assert (run["status"], run["error"]["code"]) == ("failed", "invalid_time")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_document_with_a_number_that_is_not_finite_is_refused_with_its_place(
    installation: Installation, number: str
) -> None:
    text = (
        "apiVersion: penstock/v1\nkind: Workflow\nmetadata: {name: odd}\n"
        f"spec:\n  steps:\n  - id: a\n    transform: {{x: [{number}]}}\n"
    )
    answer = installation.client.post(
        "/v1/apply", content=text, headers={"content-type": "application/yaml"}
    )
    assert answer.status_code == 422, answer.text
    fault = answer.json()["errors"][0]
    assert fault["path"] == "documents[0]"
    assert "(line 7, column 21)" in fault["message"]
