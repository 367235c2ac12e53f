"""Arguments against a JSON Schema."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue

from penstock.contracts.errors import RejectedError
from penstock_tool_runner.core.arguments import check_arguments

SCHEMA: JsonValue = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1},
        "days": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}


def test_right_arguments_pass() -> None:
    check_arguments(SCHEMA, {"city": "Ulm", "days": [1, 2]})
    check_arguments(None, {"anything": True})


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"city": ""}, "city"),
        ({"city": "Ulm", "days": [1, "x"]}, "days[1]"),
        ({}, ""),
        ({"city": "Ulm", "more": 1}, ""),
        ([], ""),
    ],
)
def test_wrong_arguments_are_rejected_with_their_path(arguments: Any, path: str) -> None:
    with pytest.raises(RejectedError) as caught:
        check_arguments(SCHEMA, arguments)
    assert caught.value.code == "invalid_arguments"
    assert [detail.path for detail in caught.value.details] == [path]


def test_schema_that_is_none_is_rejected() -> None:
    with pytest.raises(RejectedError) as caught:
        check_arguments({"type": "no such type"}, {})
    assert caught.value.code == "invalid_schema"


def test_reference_to_elsewhere_is_never_fetched() -> None:
    with pytest.raises(RejectedError) as caught:
        check_arguments({"$ref": "http://127.0.0.1:1/schema.json"}, {})
    assert caught.value.code == "invalid_schema"
