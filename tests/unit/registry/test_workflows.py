import json
from typing import Any

import pytest

from penstock.contracts.errors import RejectedError
from penstock.contracts.plan import (
    PLAN,
    BranchNode,
    Node,
    ParallelNode,
    Plan,
    ToolNode,
    WaitNode,
    WorkflowNode,
)
from tests.unit.registry.builders import agent, compiled, faults_of, tool, workflow

INPUT = {
    "type": "object",
    "properties": {
        "n": {"type": "number"},
        "city": {"type": "string"},
        "rows": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["n"],
}


def plan_of(*steps: dict[str, Any], **spec: Any) -> Plan:
    flow = workflow(*steps, **{"input": INPUT, **spec})
    return PLAN.validate_json(compiled(flow, agent(), tool()).body)


def node_of(step: dict[str, Any], **spec: Any) -> Node:
    return plan_of({"id": "a", **step}, **spec).nodes[0]


def found(*steps: dict[str, Any], **spec: Any) -> list[tuple[str, str]]:
    flow = workflow(*steps, **{"input": INPUT, **spec})
    return [(fault.path, fault.message) for fault in faults_of(flow, agent(), tool())]


def one(step: dict[str, Any], **spec: Any) -> tuple[str, str]:
    (fault,) = found({"id": "a", **step}, **spec)
    return fault


def test_plan_of_every_kind_of_step_reads_back_as_it_was_written() -> None:
    steps: list[dict[str, Any]] = [
        {"id": "t", "transform": {"x": "{{ input.n }}"}},
        {"id": "b", "branch": [{"if": "input.n > 1", "steps": [{"id": "b1", "transform": 1}]}]},
        {"id": "p", "parallel": {"branches": {"l": {"steps": [{"id": "p1", "agent": "helper"}]}}}},
        {"id": "m", "map": {"over": "input.rows", "steps": [{"id": "m1", "transform": 1}]}},
        {"id": "l", "loop": {"until": "true", "steps": [{"id": "l1", "transform": 1}]}},
        {"id": "w", "wait": {"for": "90s"}},
        {"id": "q", "approval": {"message": "sure?"}},
        {"id": "s", "send": {"to": {"run": "{{ input.city }}"}, "name": "hi"}},
        {"id": "h", "http": {"url": "https://example.com/{{ input.city }}"}},
        {"id": "e", "end": {"output": 1}},
    ]

    plan = plan_of(*steps)

    assert [node.kind for node in plan.nodes] == [
        "transform", "branch", "parallel", "map", "loop", "wait", "approval", "send", "tool", "end",
    ]  # fmt: skip
    assert PLAN.validate_json(plan.to_bytes()) == plan
    assert plan.input_schema == INPUT
    assert set(plan.by_id) == {
        "t",
        "b",
        "b1",
        "p",
        "p1",
        "m",
        "m1",
        "l",
        "l1",
        "w",
        "q",
        "s",
        "h",
        "e",
    }


def test_branch_compiles_to_cases_with_names_and_else() -> None:
    node = node_of(
        {
            "branch": [
                {"if": "input.n > 1", "steps": [{"id": "x", "transform": 1}], "output": 7},
                {"if": True, "name": "sure", "steps": [{"id": "y", "transform": 1}]},
                {"else": [{"id": "z", "transform": 1}]},
            ]
        }
    )

    assert isinstance(node, BranchNode)
    assert node.conditions == ("input.n > 1", "true", None)
    assert [block.name for block in node.blocks] == ["case_1", "sure", "else"]
    assert node.blocks[0].output == 7


@pytest.mark.parametrize(("wait", "count"), [("all", None), ("any", 1), (2, 2)])
def test_parallel_compiles_how_many_must_succeed(wait: Any, count: int | None) -> None:
    branches = {name: {"steps": [{"id": name, "transform": 1}]} for name in ("x", "y")}

    node = node_of({"parallel": {"branches": branches, "wait": wait, "on_failure": "collect"}})

    assert isinstance(node, ParallelNode)
    assert (node.wait, node.collect) == (count, True)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(5, 5), ("90s", 90), ("1h30m", 5400), ("PT2M", 120), ("P1DT1S", 86_401), ("250ms", 0.25)],
)
def test_wait_compiles_lengths_of_time_to_seconds(written: Any, seconds: float) -> None:
    node = node_of({"wait": {"for": written}})

    assert isinstance(node, WaitNode)
    assert node.seconds == seconds


def test_wait_lets_a_run_take_longer_than_an_hour() -> None:
    assert plan_of({"id": "a", "transform": 1}).timeout_seconds == 3600
    assert plan_of({"id": "a", "wait": {"for": "3d"}}).timeout_seconds == 30 * 86_400


def test_compensation_gets_an_id_of_its_own() -> None:
    step = {"tool": "add", "input": {"a": 1, "b": 2}, "compensate": {"agent": "helper"}}

    node = node_of(step)

    assert node.compensate is not None
    assert (node.compensate.id, node.compensate.kind) == ("a_undo", "agent")
    assert "a_undo" in plan_of({"id": "a", **step}).by_id


def test_handlers_and_limits_are_in_the_plan() -> None:
    plan = plan_of(
        {"id": "a", "transform": 1},
        on_error=[{"id": "b", "transform": "{{ error.code }}"}],
        limits={"max_steps": 5},
        concurrency={"key": "input.city", "policy": "reject"},
        correlation="x-{{ input.n }}",
        **{"finally": [{"id": "c", "transform": "{{ steps.a.status }}"}]},
    )

    assert [node.id for node in (*plan.on_error, *plan.finally_)] == ["b", "c"]
    assert plan.limits.max_steps == 5
    assert plan.concurrency is not None
    assert plan.concurrency.policy == "reject"


# What is refused


def test_faults_of_all_steps_are_said_at_once() -> None:
    faults = found(
        {"id": "a", "tool": "nothing"},
        {"id": "b", "if": "input.n +", "transform": 1},
        {"id": "c", "map": {"over": "steps.d.output", "steps": [{"id": "x", "transform": 1}]}},
        {"id": "d", "transform": "{{ steps.x.output }}"},
        {"id": "D", "approval": {}},
    )

    assert [path for path, _ in faults] == [
        "spec.steps[4].id",
        "spec.steps[0].tool",
        "spec.steps[1].if",
        "spec.steps[2].map.over",
        "spec.steps[3].transform",
    ]
    assert faults[4][1] == "step 'x' is hidden in 'c'; read steps.c.output"


def test_faults_of_one_string_and_of_a_circle_are_said_at_once() -> None:
    faults = found(
        {
            "id": "a",
            "transform": "{{ a..b }} {{ steps.z.output }} {{ input.n.x }}",
            "depends_on": ["a"],
        }
    )

    assert [path for path, _ in faults] == [
        "spec.steps[0].depends_on",
        *["spec.steps[0].transform"] * 3,
    ]


@pytest.mark.parametrize(
    ("step", "place"),
    [
        ({"if": "input.n", "transform": 1}, "if"),
        ({"if": 'input.n > "x"', "transform": 1}, "if"),
        ({"if": {"path": "$.input.n", "op": "greater", "value": 1}, "transform": 1}, "if.op"),
        ({"if": "steps.a.status == 'failed'", "transform": 1}, "if"),
        ({"transform": "{{ input.n.x }}"}, "transform"),
        ({"transform": "{{ input.rows.x }}"}, "transform"),
        ({"transform": "{{ input.rows[0].x }}", "if": "false && input.rows"}, "if"),
        ({"transform": "{{ input.city * 2 }}"}, "transform"),
        ({"transform": "{{ item }}"}, "transform"),
        ({"transform": "{{ secrets.KEY }}"}, "transform"),
        ({"agent": "helper", "input": "{{ secrets.KEY }}"}, "input"),
        ({"transform": "{{ error.code }}"}, "transform"),
        ({"transform": 1, "retry": {"max_attempts": 2}}, "retry"),
        ({"transform": 1, "timeout_seconds": 2}, "timeout_seconds"),
        ({"transform": 1, "input": 2}, "input"),
        ({"transform": 1, "fallback": 2}, "fallback"),
        ({"transform": 1, "compensate": {"agent": "helper"}}, "compensate"),
        ({"wait": {}}, "wait"),
        ({"wait": {"for": 1, "timeout": 2}}, "wait.timeout"),
        ({"wait": {"until": "tomorrow"}}, "wait.until"),
        ({"wait": {"until": "2030-01-01T00:00:00"}}, "wait.until"),
        ({"wait": {"signal": {"name": "x", "match": "payload.y"}}}, "wait.signal.match"),
        ({"send": {"to": {}, "name": "x"}}, "send.to"),
        ({"workflow": {"name": "flow"}}, "workflow.name"),
        ({"workflow": {"name": "nobody"}}, "workflow.name"),
        ({"end": {}, "on_error": "continue"}, "on_error"),
        ({"loop": {"steps": [{"id": "x", "transform": 1}]}}, "loop"),
        ({"map": {"over": "input.rows", "as": "input", "steps": [{"id": "x", "transform": 1}]}},
         "map.as"),
        ({"branch": [{"else": [{"id": "x", "transform": 1}]},
                     {"if": "true", "steps": [{"id": "y", "transform": 1}]}]}, "branch[0].else"),
        ({"branch": [{"if": "true"}]}, "branch[0].steps"),
        ({"parallel": {"branches": {"x": {"steps": [{"id": "x", "transform": 1}]}}, "wait": 2}},
         "parallel.wait"),
        ({"parallel": {"branches": {
            "x": {"steps": [{"id": "x", "transform": 1}]},
            "X": {"steps": [{"id": "y", "transform": 1}]}}}}, "parallel.branches.X"),
        ({"http": {"url": "x", "body": "a", "json": 1}}, "http"),
        ({"http": {"url": "x", "response": "{{ input.n }}"}}, "http.response"),
    ],
)  # fmt: skip
def test_wrong_step_is_refused_at_its_place(step: dict[str, Any], place: str) -> None:
    path, _ = one(step)

    assert path == f"spec.steps[0].{place}"


@pytest.mark.parametrize("written", ["soon", "5 parsecs", "-1s", 0, True, "P", "400d"])
def test_wait_with_a_wrong_length_of_time_says_what_is_allowed(written: Any) -> None:
    with pytest.raises(RejectedError) as caught:
        node_of({"wait": {"for": written}})

    (fault,) = caught.value.details
    assert fault.path == "spec.steps[0].wait.for"
    assert fault.allowed is not None


def test_wait_that_is_longer_than_the_run_is_refused() -> None:
    path, message = one({"wait": {"for": "2h"}}, timeout_seconds=3600)

    assert path == "spec.steps[0].wait.for"
    assert "longer than the whole run" in message


def test_steps_of_a_block_see_those_around_it_that_are_done() -> None:
    assert plan_of(
        {"id": "before", "transform": 1},
        {
            "id": "each",
            "map": {
                "over": "input.rows",
                "as": "row",
                "steps": [
                    {
                        "id": "again",
                        "loop": {
                            "until": "iteration > 2 && steps.inner.output > 1",
                            "steps": [
                                {
                                    "id": "inner",
                                    "transform": "{{ steps.before.output + index + iteration }}",
                                    "if": "has(row.x) || previous == null",
                                }
                            ],
                        },
                    }
                ],
                "output": "{{ steps.again.output }}",
            },
        },
    )


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("{{ steps.each.output }}", "step 'each' encloses this place, it is not done by then"),
        ("{{ steps.after.output }}", "step 'after' need not be done by then"),
        ("{{ steps.beside.output }}", "step 'beside' is hidden in 'other'"),
        ("{{ steps }}", "steps has no value by itself"),
        ("{{ steps.before.result }}", "a step has no 'result'"),
    ],
)
def test_steps_that_a_block_cannot_see_are_refused(inner: str, message: str) -> None:
    faults = found(
        {"id": "before", "transform": 1},
        {"id": "other", "branch": [{"else": [{"id": "beside", "transform": 1}]}]},
        {"id": "each", "map": {"over": "input.rows", "steps": [{"id": "x", "transform": inner}]}},
        {"id": "after", "transform": 1},
    )

    ((path, said),) = faults
    assert path == "spec.steps[2].map.steps[0].transform"
    assert said.startswith(message)


def nested(kind: str, depth: int) -> dict[str, Any]:
    step: dict[str, Any] = {"id": "x0", "transform": 1}
    for number in range(1, depth + 1):
        body = {
            "map": {"over": "input.rows", "as": f"v{number}", "steps": [step]},
            "branch": [{"else": [step]}],
        }[kind]
        step = {"id": f"x{number}", kind: body}
    return step


@pytest.mark.parametrize(("kind", "most"), [("map", 3), ("branch", 8)])
def test_blocks_within_blocks_are_bounded(kind: str, most: int) -> None:
    assert plan_of(nested(kind, most))

    faults = found(nested(kind, most + 1))
    assert "too many" in faults[0][1]


def test_handlers_see_the_error_and_may_not_end_or_undo() -> None:
    faults = found(
        {"id": "a", "transform": 1},
        on_error=[{"id": "b", "end": {}}],
        **{
            "finally": [
                {"id": "c", "agent": "helper", "compensate": {"agent": "helper"}},
                {"id": "d", "transform": "{{ error.code }} {{ steps.b.output }}"},
            ]
        },
    )

    assert [path for path, _ in faults] == ["spec.on_error[0].end", "spec.finally[0].compensate"]


def test_concurrency_and_correlation_see_no_steps() -> None:
    faults = found(
        {"id": "a", "transform": 1},
        concurrency={"key": "steps.a.output"},
        correlation="{{ steps.a.output }}",
    )

    assert [path for path, _ in faults] == ["spec.concurrency.key", "spec.correlation"]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "objekt"}, "spec.input.type"),
        ({"properties": {"a": {"$ref": "https://example.com/a"}}}, "spec.input.properties.a.$ref"),
        ({"description": "x" * 70_000}, "spec.input"),
    ],
)
def test_wrong_schema_of_the_input_is_refused(schema: dict[str, Any], path: str) -> None:
    ((place, _),) = found({"id": "a", "transform": 1}, input=schema)

    assert place == path


# Child runs


ONE: dict[str, Any] = {"id": "t", "transform": 1}


def child(name: str, *names: str, **spec: Any) -> Any:
    steps = [{"id": f"s{index}", "workflow": {"name": other}} for index, other in enumerate(names)]
    return workflow(*(steps or [ONE]), name=name, **spec)


def test_child_is_pinned_by_the_digest_of_its_plan() -> None:
    inner = child("inner")

    plan = PLAN.validate_json(compiled(child("outer", "inner"), inner).body)

    node = plan.nodes[0]
    assert isinstance(node, WorkflowNode)
    assert node.child.plan_digest == compiled(inner).digest
    assert node.input == "{{ input }}"


def test_workflows_that_run_each_other_are_refused_with_the_way() -> None:
    faults = faults_of(child("one", "two"), child("two", "three"), child("three", "one"))

    assert [(fault.path, fault.message) for fault in faults] == [
        ("spec.steps[0].workflow.name", "runs itself again, by way of two, three")
    ]


def test_input_of_a_child_is_held_against_what_it_takes() -> None:
    schema = {"type": "object", "properties": {"a": {}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    flow = workflow({"id": "s", "workflow": {"name": "inner", "input": {"b": 1}}}, name="outer")

    faults = faults_of(flow, child("inner", input=schema))

    assert [fault.path for fault in faults] == [
        "spec.steps[0].workflow.input.b",
        "spec.steps[0].workflow.input.a",
    ]


# Requests


def test_http_step_becomes_a_tool_whose_arguments_the_run_gives() -> None:
    plan = plan_of(
        {
            "id": "get",
            "http": {
                "method": "PUT",
                "url": "https://example.com/{{ input.city }}/{{ input.n + 1 }}",
                "headers": {"authorization": "Bearer {{ secrets.KEY }}", "x-run": "{{ run.id }}"},
                "query": {"fixed": 1, "q": "{{ input.city }}"},
                "json": {"n": "{{ input.n }}"},
            },
        }
    )

    node, made = plan.nodes[0], plan.tools["http-get"]
    assert isinstance(node, ToolNode)
    assert node.ref == "http-get"
    assert node.input == {
        "input_city": "{{ input.city }}",
        "input_n_1": "{{ input.n + 1 }}",
        "headers": {"x-run": "{{ run.id }}"},
        "query": {"q": "{{ input.city }}"},
        "json": {"n": "{{ input.n }}"},
    }
    assert isinstance(made.config, dict)
    http = made.config["http"]
    assert isinstance(http, dict)
    assert http["url"] == "https://example.com/{{ arguments.input_city }}/{{ arguments.input_n_1 }}"
    assert http["headers"] == {
        "x-run": '{{ arguments.headers["x-run"] }}',
        "authorization": {"secret": "KEY", "prefix": "Bearer "},
    }
    assert http["query"] == {"q": '{{ arguments.query["q"] }}', "fixed": 1} or http["query"] == {
        "fixed": 1,
        "q": '{{ arguments.query["q"] }}',
    }
    assert http["json"] == "{{ arguments.json }}"


def test_http_step_keeps_out_of_the_way_of_a_tool_with_its_name() -> None:
    flow = workflow(
        {"id": "x", "tool": "http-get", "input": {"a": 1, "b": 2}},
        {"id": "get", "http": {"url": "https://example.com"}},
    )

    plan = PLAN.validate_json(compiled(flow, tool("http-get")).body)

    assert [getattr(node, "ref", None) for node in plan.nodes] == ["http-get", "http-get-2"]
    assert set(plan.tools) == {"http-get", "http-get-2"}


# Tools and agents


def test_tool_carries_policy_approval_and_care() -> None:
    made = tool(
        "pay",
        policy="require_approval",
        approval={"role": "admin", "expires_seconds": "2h", "message": "Pay?"},
        at_most_once=True,
        heartbeat_seconds=5,
        reserve={"cost_usd": 0.5},
    )

    body = json.loads(compiled(made).body)

    assert body["policy"] == "require_approval"
    assert body["approval"] == {"role": "admin", "expires_seconds": 7200, "message": "Pay?"}
    assert (body["at_most_once"], body["heartbeat_seconds"]) == (True, 5)
    assert body["reserve"]["cost_usd"] == 0.5


def test_tool_of_a_client_has_no_runner() -> None:
    body = json.loads(compiled(tool("ask", builtin=None, client={})).body)

    assert (body["client"], body["queue"]) == (True, "client")
    faults = faults_of(tool("ask", builtin=None, client={}, at_most_once=True))
    assert [fault.path for fault in faults] == ["spec.at_most_once"]


def test_approval_without_a_policy_that_asks_is_refused() -> None:
    faults = faults_of(tool(approval={"role": "admin"}))

    assert [(fault.path, fault.allowed) for fault in faults] == [
        ("spec.approval", "policy: require_approval")
    ]


@pytest.mark.parametrize("message", ["{{ arguments.absent }}", "{{ steps.a }}", "{{ input. }}"])
def test_approval_message_that_cannot_be_rendered_is_refused(message: str) -> None:
    known = {"type": "object", "properties": {"amount": {}}}
    asked = {"message": "Pay {{ arguments.amount }} for {{ input.item }}?"}
    assert compiled(tool(policy="require_approval", approval=asked, parameters=known)).body

    wrong = {"message": message}
    faults = faults_of(tool(policy="require_approval", approval=wrong, parameters=known))

    assert [fault.path for fault in faults] == ["spec.approval.message"]


def test_agent_carries_limits_and_the_price_of_a_token() -> None:
    priced = agent(max_tokens=10, max_cost_usd=0.5, price={"input_usd": 0.25, "output_usd": 2})

    made = PLAN.validate_json(compiled(priced).body).agents["helper"]

    assert (made.max_tokens, made.max_cost_usd) == (10, 0.5)
    assert made.price is not None
    assert (made.price.input_usd, made.price.output_usd) == (0.25e-6, 2e-6)
