"""An HTTP tool's request, rendered."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts.errors import RejectedError
from penstock_tool_runner.core.request import (
    HttpTool,
    Secret,
    build_request,
    map_response,
    read_tool,
)


def tool(**fields: Any) -> HttpTool:
    return HttpTool.model_validate({"url": "https://api.example/x", **fields})


def test_request_is_rendered_over_the_arguments() -> None:
    described = tool(
        method="POST",
        url="https://api.example/cities/{{ arguments.city }}/days",
        headers={"X-Unit": "{{ arguments.unit }}", "Authorization": {"secret": "KEY"}},
        query={"n": "{{ arguments.days }}", "tag": ["a", "b"], "none": None},
        json={"where": {"city": "{{ arguments.city }}"}, "days": "{{ arguments.days }}"},
    )
    request = build_request(described, {"city": "Bad Ems", "unit": "C", "days": 3})
    assert request.method == "POST"
    assert request.url == "https://api.example/cities/Bad%20Ems/days"
    assert request.headers == {"X-Unit": "C"}
    assert request.secrets == {"Authorization": Secret(secret="KEY")}
    assert request.query == (("n", "3"), ("tag", "a"), ("tag", "b"))
    assert request.json_body == {"where": {"city": "Bad Ems"}, "days": 3}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("a/b", "a%2Fb"),
        ("a?b=c&d#e", "a%3Fb%3Dc%26d%23e"),
        ("../admin", "..%2Fadmin"),
        ("@evil.example", "%40evil.example"),
        ("Zürich", "Z%C3%BCrich"),
        (7, "7"),
    ],
)
def test_argument_in_a_url_cannot_leave_its_place(value: Any, written: str) -> None:
    described = tool(url="https://api.example/v1/{{ arguments.id }}/x")
    assert build_request(described, {"id": value}).url == f"https://api.example/v1/{written}/x"


@pytest.mark.parametrize("value", [".", ".."])
def test_argument_that_would_climb_is_rejected(value: str) -> None:
    with pytest.raises(RejectedError):
        build_request(tool(url="https://api.example/v1/{{ arguments.id }}"), {"id": value})


def test_argument_that_is_the_whole_url_is_taken_as_it_is() -> None:
    described = tool(url="{{ arguments.url }}")
    url = "https://other.example/a?b=c"
    assert build_request(described, {"url": url}).url == url


def test_argument_cannot_add_a_header() -> None:
    with pytest.raises(RejectedError) as caught:
        build_request(tool(headers={"x-a": "{{ arguments.a }}"}), {"a": "1\r\nx-b: 2"})
    assert caught.value.code == "invalid_arguments"


def test_argument_that_is_missing_is_rejected() -> None:
    with pytest.raises(RejectedError) as caught:
        build_request(tool(query={"q": "{{ arguments.q }}"}), {})
    assert caught.value.code == "template_unresolved"


def test_response_is_mapped() -> None:
    described = tool(response={"first": "{{ body.items[0].name }}", "status": "{{ status }}"})
    mapped = map_response(described, {}, status=200, headers={}, body={"items": [{"name": "a"}]})
    assert mapped == {"first": "a", "status": 200}
    assert map_response(tool(), {}, status=200, headers={}, body=[1]) == [1]


def test_config_without_a_request_is_rejected() -> None:
    for config in (None, {}, {"http": {"method": "GET"}}, {"http": {"url": 1}}):
        with pytest.raises(RejectedError) as caught:
            read_tool(config)  # type: ignore[arg-type]
        assert caught.value.code == "invalid_tool"


def test_config_names_the_place_of_a_mistake() -> None:
    with pytest.raises(RejectedError) as caught:
        read_tool({"http": {"url": "https://a.example", "headers": {"a": {"secret": "no-no"}}}})
    assert any(detail.path.startswith("http.headers.a") for detail in caught.value.details)
