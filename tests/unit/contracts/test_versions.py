from typing import Any

import pytest

from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.json import Json
from penstock.contracts.plan import CanaryVersion, PublishedVersion
from penstock.contracts.versions import accepted_input, routed
from penstock_gateway.runs.start import new_run_id

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "number", "minimum": 1}, "kind": {"enum": ["a", "b"]}},
    "required": ["n"],
    "additionalProperties": False,
}


def version(weight: int | None = None, **more: object) -> PublishedVersion:
    canary = (
        CanaryVersion(version=2, plan_digest="two", weight=weight, input_schema=SCHEMA)
        if weight is not None
        else None
    )
    fields = {"name": "f", "kind": DefinitionKind.WORKFLOW, "version": 1, "plan_digest": "one"}
    return PublishedVersion.model_validate({**fields, "canary": canary, **more})


def test_version_without_a_canary_is_the_one_of_every_run() -> None:
    assert routed(version(), new_run_id()) == version()


def test_canary_gets_its_share_of_the_runs() -> None:
    runs = [f"{number:026}" for number in range(10_000)]

    share = sum(routed(version(10), run).version == 2 for run in runs) / len(runs)

    assert 0.08 < share < 0.12


def test_canary_of_a_run_is_decided_by_its_id() -> None:
    run_id = new_run_id()

    assert len({routed(version(50), run_id).version for _ in range(20)}) == 1


def test_canary_of_all_runs_brings_its_plan_and_its_schema() -> None:
    found = routed(version(100), new_run_id())

    assert (found.version, found.plan_digest, found.canary) == (2, "two", None)
    assert found.input_schema == SCHEMA


def test_input_of_a_version_without_schema_may_be_anything() -> None:
    accepted_input(version(), {"x": [1]})


def test_input_that_fits_passes() -> None:
    accepted_input(version(input_schema=SCHEMA), {"n": 1, "kind": "a"})


def test_input_that_does_not_fit_is_refused_with_every_place() -> None:
    with pytest.raises(RejectedError) as caught:
        accepted_input(version(input_schema=SCHEMA), {"n": 0, "kind": "c", "x": 1})

    assert caught.value.code == "invalid_input"
    assert [(detail.path, detail.allowed) for detail in caught.value.details] == [
        ("input", None),
        ("input.kind", "a, b"),
        ("input.n", "minimum: 1"),
    ]


def test_input_is_accepted_with_the_defaults_of_the_schema() -> None:
    schema = {"properties": {"n": {"type": "integer", "default": 5}}, "required": ["n"]}
    given: dict[str, Json] = {}

    assert accepted_input(version(input_schema=schema), given) == {"n": 5}
    assert given == {}


def test_default_that_does_not_fit_its_schema_is_refused() -> None:
    schema = {"properties": {"n": {"type": "integer", "default": "x"}}}

    with pytest.raises(RejectedError) as caught:
        accepted_input(version(input_schema=schema), {})

    assert [detail.path for detail in caught.value.details] == ["input.n"]


def test_input_schema_that_refers_elsewhere_is_never_fetched() -> None:
    schema = {"$ref": "https://example.com/schema.json"}

    with pytest.raises(RejectedError) as caught:
        accepted_input(version(input_schema=schema), {})

    assert caught.value.code == "invalid_schema"
