from typing import Any

import pytest

from penstock.contracts.errors import RejectedError
from penstock.contracts.plan import PLAN
from penstock_registry.core.catalog import Catalog
from penstock_registry.core.compiler import compile_document
from tests.unit.registry.builders import (
    agent,
    compiled,
    document,
    faults_of,
    places,
    tool,
    workflow,
)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    flow = workflow({"id": "x", "agent": "nobody"}, {"id": "y", "tool": "nothing"})

    faults = faults_of(flow, tool(), agent())

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.steps[0].agent", "helper"),
        ("spec.steps[1].tool", "add"),
    ]


def test_agent_with_unknown_and_repeated_tools_is_refused() -> None:
    faults = faults_of(agent(tools=["add", "sub", "add"]), tool())

    assert places(faults) == ["spec.tools[2]", "spec.tools[1]"]
    assert faults[0].message == "'add' is named twice"


@pytest.mark.parametrize(
    "spec",
    [
        {"model": None},
        {"endpoint": "http://localhost:1"},
    ],
)
def test_agent_needs_exactly_one_of_model_and_endpoint(spec: dict[str, Any]) -> None:
    faults = faults_of(agent(**spec))

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec", "exactly one of model, endpoint")
    ]


def test_script_needs_a_scripted_model() -> None:
    faults = faults_of(agent(script={"turns": [{"text": "hi"}]}))

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.script", "model: scripted/NAME")
    ]


def test_scripted_model_needs_no_script() -> None:
    assert compiled(agent(model="scripted/echo")).digest


def test_script_templates_are_checked() -> None:
    turns = [
        {"tool_calls": [{"name": "add", "arguments": {"a": "{{ arguments.a }}"}}]},
        {"text": "{{ tools[0] }} of {{ input }}"},
    ]

    faults = faults_of(agent(model="scripted/x", script={"turns": turns}))

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.script.turns[0].tool_calls[0].arguments.a", "input, tools")
    ]


def test_step_needs_exactly_one_of_agent_and_tool() -> None:
    flow = workflow(
        {"id": "x"}, {"id": "y", "agent": "helper", "tool": "add", "input": {"a": 1, "b": 2}}
    )

    faults = faults_of(flow, tool(), agent())

    assert places(faults) == ["spec.steps[0]", "spec.steps[1]"]


def test_step_ids_that_differ_in_case_alone_are_refused() -> None:
    flow = workflow({"id": "one", "agent": "helper"}, {"id": "ONE", "agent": "helper"})

    faults = faults_of(flow, agent())

    assert places(faults) == ["spec.steps[1].id"]


def test_step_id_that_is_repeated_is_refused() -> None:
    flow = workflow(
        {"id": "one", "agent": "helper"}, {"id": "one", "agent": "helper", "depends_on": []}
    )

    assert places(faults_of(flow, agent())) == ["spec.steps[1].id"]


def test_steps_in_a_circle_are_refused_with_the_circle() -> None:
    flow = workflow(
        {"id": "a", "agent": "helper", "depends_on": ["c"]},
        {"id": "b", "agent": "helper"},
        {"id": "c", "agent": "helper"},
        {"id": "d", "agent": "helper"},
    )

    faults = faults_of(flow, agent())

    assert places(faults) == [f"spec.steps[{index}].depends_on" for index in range(3)]
    assert faults[0].message == "waits for itself, by way of a, b, c"


def test_step_that_waits_for_itself_is_refused() -> None:
    flow = workflow({"id": "a", "agent": "helper", "depends_on": ["a"]})

    assert places(faults_of(flow, agent())) == ["spec.steps[0].depends_on"]


def test_step_that_waits_for_an_unknown_one_is_refused() -> None:
    flow = workflow({"id": "a", "agent": "helper", "depends_on": ["zero"]})

    faults = faults_of(flow, agent())

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.steps[0].depends_on[0]", "a")
    ]


def test_templates_are_checked_for_steps_roots_and_form() -> None:
    flow = workflow(
        {"id": "a", "agent": "helper", "input": "{{ steps.b.output }}"},
        {"id": "b", "agent": "helper", "input": {"x": ["{{ steps.nope.output }}"]}},
        {"id": "c", "agent": "helper", "input": "{{ stepz.a }}"},
        {"id": "d", "agent": "helper", "input": "{{ 1 + }}"},
        output="{{ steps.e.output }}",
    )

    faults = faults_of(flow, agent())

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.steps[0].input", "no step"),
        ("spec.steps[1].input.x[0]", "a"),
        ("spec.steps[2].input", "input, run, session, steps"),
        ("spec.steps[3].input", None),
        ("spec.output", "a, b, c, d"),
    ]
    assert "need not be done by then" in faults[0].message


def test_template_may_read_a_step_that_is_done_indirectly() -> None:
    flow = workflow(
        {"id": "a", "agent": "helper"},
        {"id": "b", "agent": "helper"},
        {"id": "c", "agent": "helper", "input": '{{ steps["a"].output.items[0] }}'},
    )

    assert PLAN.validate_json(compiled(flow, agent()).body).nodes[2].needs == ("b",)


def test_arguments_of_a_step_are_checked_as_far_as_they_are_known() -> None:
    sourced = tool("sub", sources={"b": {"source": "default", "value": 1}})
    flow = workflow(
        {"id": "a", "tool": "add", "input": {"a": 1, "c": 2}},
        {"id": "b", "tool": "sub", "input": {"a": 1}},
        {"id": "c", "tool": "add", "input": "{{ input }}"},
        {"id": "d", "tool": "add", "input": [1]},
        {"id": "e", "tool": "add"},
    )

    faults = faults_of(flow, tool(), sourced)

    assert places(faults) == [
        "spec.steps[0].input.c",
        "spec.steps[0].input.b",
        "spec.steps[3].input",
        "spec.steps[4].input.a",
        "spec.steps[4].input.b",
    ]


@pytest.mark.parametrize("spec", [{"builtin": None}, {"runner": {"queue": "mine"}}])
def test_tool_needs_exactly_one_way_to_run(spec: dict[str, Any]) -> None:
    faults = faults_of(tool(**spec))

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec", "exactly one of builtin, http, runner, client")
    ]


def test_tool_schema_that_is_no_schema_is_refused_with_every_place() -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "numbr"}, "b": {"minimum": "low"}},
        "required": "a",
    }

    faults = faults_of(tool(parameters=parameters))

    assert places(faults) == [
        "spec.parameters.properties.a.type",
        "spec.parameters.properties.b.minimum",
        "spec.parameters.required",
    ]
    assert faults[0].allowed == "array, boolean, integer, null, number, object, string"
    assert [fault.allowed for fault in faults[1:]] == ["number", "array"]


def test_tool_schema_of_another_type_than_object_is_refused() -> None:
    faults = faults_of(tool(parameters={"type": "array"}))

    assert [(fault.path, fault.allowed) for fault in faults] == [("spec.parameters.type", "object")]


def test_tool_sources_are_checked() -> None:
    target = tool(
        sources={
            "a": {"source": "system"},
            "b": {"source": "default", "value": "{{ steps.x.output }}"},
            "c": {"source": "system", "value": 1},
        }
    )

    faults = faults_of(target)

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.sources.a.value", None),
        ("spec.sources.b.value", "input, run, session, secrets"),
        ("spec.sources.c", "a, b"),
    ]


def test_http_templates_are_checked_against_the_parameters() -> None:
    target = tool(
        builtin=None,
        http={
            "url": "https://api.example/{{ arguments.nope }}",
            "headers": {"x": "{{ input }}"},
            "json": {"a": "{{ arguments.a }}"},
            "body": "text",
            "response": "{{ body.items[0] }}",
        },
    )

    faults = faults_of(target)

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.http", "one of body, json"),
        ("spec.http.url", "a, b"),
        ("spec.http.headers.x", "arguments"),
    ]


def test_instructions_are_checked_as_a_template() -> None:
    assert places(faults_of(agent(instructions="Hi {{ payload.a }}"))) == ["spec.instructions"]


def test_webhook_to_nowhere_is_refused() -> None:
    target = document(
        "Webhook", "push", {"target": "nobody", "secrets": ["A", "A"], "input": "{{ input }}"}
    )

    faults = faults_of(target, agent())

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.target", "helper"),
        ("spec.secrets[1]", None),
        ("spec.input", "headers, payload"),
    ]


def test_agent_and_workflow_of_the_same_name_are_refused() -> None:
    flow = workflow({"id": "a", "agent": "same"}, name="same")

    assert places(faults_of(flow, agent("same"))) == ["metadata.name"]
    assert places(faults_of(agent("same"), flow)) == ["metadata.name"]


def test_tool_may_share_its_name_with_an_agent() -> None:
    assert compiled(agent("same"), tool("same")).digest


def test_faults_stand_behind_the_path_of_their_document() -> None:
    target = agent(tools=["nope"])

    with pytest.raises(RejectedError) as caught:
        compile_document(target, Catalog.of([target]), path="documents[2]")

    assert places(list(caught.value.details)) == ["documents[2].spec.tools[0]"]


@pytest.mark.parametrize(
    ("spec", "path", "allowed"),
    [
        ({"model": "gpt-5"}, "spec.model", "PROVIDER/NAME, such as openai/gpt-5-mini"),
        ({"model": "dotprompt/x"}, "spec.model", None),
        ({"parameters": {"base_url": "http://x"}}, "spec.parameters.base_url", None),
        ({"parameters": {"model_list": []}}, "spec.parameters.model_list", None),
        (
            {"parameters": {"api_key": "sk-literal"}},
            "spec.parameters.api_key",
            "{secret: NAME}, for PENSTOCK_SECRET_NAME",
        ),
        ({"parameters": {"api_key": ""}}, "spec.parameters.api_key", None),
        ({"parameters": {"api_base": "http://x/#y"}}, "spec.parameters.api_base", None),
        (
            {"model": "bedrock/x", "parameters": {"api_base": "http://x"}},
            "spec.parameters.api_base",
            None,
        ),
    ],
)
def test_model_and_its_parameters_are_those_of_the_table(
    spec: dict[str, Any], path: str, allowed: str | None
) -> None:
    (fault,) = faults_of(agent(**{"model": "openai/gpt-5-mini", **spec}))

    assert fault.path == path
    assert allowed is None or fault.allowed == allowed
    assert "sk-literal" not in str(fault)


def test_model_with_an_address_and_a_key_by_reference_is_accepted() -> None:
    parameters = {
        "temperature": 0.2,
        "api_base": "http://[::1]:8000/v1",
        "api_key": {"secret": "TEAM_KEY"},
    }

    assert compiled(agent(model="openai/our-own", parameters=parameters)).digest


@pytest.mark.parametrize(
    ("spec", "paths"),
    [
        ({"scheme": "hmac"}, ["spec.hmac"]),
        ({"scheme": "github", "hmac": {"header": "x"}}, ["spec.hmac"]),
        ({"verify_token": "T"}, ["spec.verify_token"]),
        (
            {"scheme": "hmac", "hmac": {"header": "x", "signed": "{id}.{timestamp}.{body}"}},
            ["spec.hmac.id_header", "spec.hmac.timestamp_header"],
        ),
        (
            {"scheme": "hmac", "hmac": {"header": "x", "timestamp_header": "y"}},
            ["spec.hmac.timestamp_header"],
        ),
        (
            {
                "scheme": "hmac",
                "hmac": {"header": "x", "id_header": "y", "signed": "{id}.{id}.{body}"},
            },
            ["spec.hmac.signed"],
        ),
    ],
)
def test_scheme_of_a_webhook_fits_its_other_fields(spec: dict[str, Any], paths: list[str]) -> None:
    hook = document("Webhook", "hook", {"target": "helper", **spec})

    assert places(faults_of(hook, agent(), tool())) == paths
