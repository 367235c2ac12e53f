"""Steps of every kind on a whole stack: written in YAML, applied and run over HTTP.

The pages' own examples are in ``test_language``; here is what happens at the edges.
"""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.http_server import Answer, Call, HttpServer
from tests.support.installation import Installation
from tests.support.waiting import eventually

Publish = Callable[..., str]


@pytest.fixture
def publish(installation: Installation) -> Publish:
    """Apply steps written in YAML as a workflow under a name of its own."""

    def write(steps: str, **spec: str) -> str:
        name = f"steps-{uuid.uuid4().hex[:12]}"
        lines = [
            "apiVersion: penstock/v1",
            "kind: Workflow",
            f"metadata: {{name: {name}}}",
            "spec:",
            *(f"  {key}: {value}" for key, value in spec.items()),
            "  steps:",
        ]
        body = textwrap.indent(textwrap.dedent(steps).strip("\n"), "    ")
        installation.apply("\n".join([*lines, body]))
        return name

    return write


def finished(installation: Installation, name: str, given: Any = None) -> Any:
    run = installation.start(name, given, wait=25)
    assert run["status"] == "done", run
    return run["output"]


def failed(installation: Installation, name: str, given: Any = None) -> dict[str, Any]:
    run = installation.start(name, given, wait=25)
    assert run["status"] == "failed", run
    return run


def kinds(installation: Installation, run_id: str, *wanted: str) -> list[str]:
    return [event["type"] for event in installation.log(run_id) if event["type"] in wanted]


def test_blocks_within_blocks_come_out_in_order(
    installation: Installation, publish: Publish
) -> None:
    name = publish(
        """
        - id: rows
          map:
            over: input.rows
            as: row
            steps:
              - id: grown
                loop:
                  while: "iteration < size(row)"
                  steps:
                    - id: sort
                      branch:
                        - if: {path: "$.iteration", op: eq, value: 0}
                          steps: [{id: first, transform: ["{{ row[iteration] }}"]}]
                        - else:
                            - id: sides
                              parallel:
                                branches:
                                  old: {steps: [{id: kept, transform: "{{ previous }}"}]}
                                  new: {steps: [{id: came, transform: "{{ row[iteration] * 10 }}"}]}
                            - id: joined
                              transform: "{{ steps.sides.output.old + [steps.sides.output.new] }}"
              - {id: told, transform: {row: "{{ index }}", values: "{{ steps.grown.output }}"}}
        """
    )

    output = finished(installation, name, {"rows": [[1, 2], [], [3, 4, 5]]})

    assert output == [
        {"row": 0, "values": [1, 20]},
        {"row": 1, "values": None},
        {"row": 2, "values": [3, 40, 50]},
    ]


@pytest.mark.parametrize(
    ("operator", "value", "taken"),
    [
        ("eq", 5, True),
        ("ne", 5, False),
        ("ge", 5, True),
        ("lt", 5, False),
        ("in", [4, 5], True),
        ("exists", None, True),
    ],
)
def test_branch_by_jsonpath_compares(
    installation: Installation, publish: Publish, operator: str, value: Any, taken: bool
) -> None:
    given = "" if value is None else f", value: {value}"
    name = publish(
        f"""
        - id: which
          branch:
            - if: {{path: "$.input.lines[0].amount", op: {operator}{given}}}
              steps: [{{id: one, transform: true}}]
            - else: [{{id: other, transform: false}}]
        """
    )

    assert finished(installation, name, {"lines": [{"amount": 5}]}) is taken


@pytest.mark.parametrize(("wait", "names"), [("any", {"quick"}), ("2", {"quick", "second"})])
def test_parallel_goes_on_when_enough_have_succeeded_and_stops_the_others(
    installation: Installation, publish: Publish, wait: str, names: set[str]
) -> None:
    name = publish(
        f"""
        - id: race
          parallel:
            wait: {wait}
            branches:
              quick: {{steps: [{{id: at_once, transform: 1}}]}}
              second: {{steps: [{{id: soon, wait: {{for: 300ms}}}}, {{id: later, transform: 2}}]}}
              never: {{steps: [{{id: long, wait: {{for: 20d}}}}]}}
        - {{id: result, transform: "{{{{ steps.race.output }}}}"}}
        """
    )

    output = finished(installation, name)

    assert {key for key, value in output.items() if value is not None} == names


def test_parallel_fails_fast_or_collects(installation: Installation, publish: Publish) -> None:
    branches = """
              bad: {steps: [{id: by_zero, tool: divide, input: {a: 1, b: 0}}]}
              good: {steps: [{id: late, wait: {for: %s}}, {id: fine, transform: 7}]}
    """
    head = "- id: both\n          parallel:\n            on_failure: %s\n            branches:"
    fast = publish(f"\n        {head % 'fail_fast'}{branches % '20d'}")
    collected = publish(f"\n        {head % 'collect'}{branches % '100ms'}")

    run = failed(installation, fast)
    output = finished(installation, collected)

    assert run["error"]["code"] == "division_by_zero"
    assert (output["bad"]["status"], output["bad"]["error"]["code"]) == (
        "failed",
        "division_by_zero",
    )
    assert (output["good"]["status"], output["good"]["output"]) == ("succeeded", 7)


def test_map_keeps_to_its_concurrency_and_to_the_order_of_its_items(
    installation: Installation, publish: Publish
) -> None:
    name = publish(
        """
        - id: each
          map:
            over: input.waits
            concurrency: 2
            steps:
              - {id: pause, wait: {for: "{{ item }}"}}
              - {id: which, transform: "{{ index }}"}
        """
    )
    run = installation.start(name, {"waits": [0.5, 0.1, 0.3, 0.1, 0.2]}, wait=25)

    assert (run["status"], run["output"]) == ("done", [0, 1, 2, 3, 4]), run
    under_way = most = 0
    for kind in kinds(installation, run["run_id"], "wait_started", "wait_ended"):
        under_way += 1 if kind == "wait_started" else -1
        most = max(most, under_way)
    assert most == 2


def test_map_fails_fast_or_collects(installation: Installation, publish: Publish) -> None:
    steps = """
        - id: each
          map:
            over: input
            on_failure: {}
            steps: [{{id: part, tool: divide, input: {{a: 12, b: "{{{{ item }}}}"}}}}]
        """
    fast = publish(steps.format("fail_fast"))
    collected = publish(steps.format("collect"))

    assert failed(installation, fast, [3, 0, 4])["error"]["code"] == "division_by_zero"
    output = finished(installation, collected, [3, 0, 4])
    assert [one["status"] for one in output] == ["succeeded", "failed", "succeeded"]
    assert [one["output"] for one in output] == [4, None, 3]


def test_map_refuses_a_longer_list_than_it_may_have(
    installation: Installation, publish: Publish
) -> None:
    name = publish(
        """
        - id: each
          map: {over: input, max_items: 2, steps: [{id: one, transform: "{{ item }}"}]}
        """
    )

    assert finished(installation, name, [1, 2]) == [1, 2]
    assert "2" in failed(installation, name, [1, 2, 3])["error"]["message"]


@pytest.mark.parametrize(("limit", "status"), [("fail", "failed"), ("stop", "done")])
def test_loop_ends_at_its_hard_bound(
    installation: Installation, publish: Publish, limit: str, status: str
) -> None:
    name = publish(
        f"""
        - id: again
          loop:
            until: "false"
            max_iterations: 3
            on_limit: {limit}
            steps: [{{id: count, transform: "{{{{ iteration }}}}"}}]
        """
    )

    run = installation.start(name, wait=25)

    assert run["status"] == status, run
    assert (run["output"], (run["error"] or {}).get("code")) in (
        (2, None),
        (None, "loop_limit"),
    )


def test_waits_end_at_a_time_at_a_moment_and_when_nothing_came(
    installation: Installation, publish: Publish
) -> None:
    name = publish(
        """
        - {id: past, wait: {until: "2001-01-01T00:00:00Z"}}
        - {id: moment, wait: {until: "{{ input.until }}"}}
        - {id: none, wait: {signal: {name: nothing}, timeout: 200ms, on_timeout: continue}}
        - {id: told, transform: "{{ steps.none.output }}"}
        """
    )
    until = datetime.now(UTC) + timedelta(seconds=1)

    run = installation.start(name, {"until": until.isoformat()}, wait=25)

    assert (run["status"], run["output"]) == ("done", None)
    assert datetime.fromisoformat(run["ended_at"]) >= until
    strict = publish("- {id: none, wait: {signal: {name: nothing}, timeout: 100ms}}")
    assert failed(installation, strict)["error"]["code"] == "wait_timeout"


@pytest.mark.parametrize("reject", ["fail", "continue"])
def test_approval_that_nobody_answers_counts_as_rejected(
    installation: Installation, publish: Publish, reject: str
) -> None:
    name = publish(
        f"""
        - {{id: consent, approval: {{message: Now, expires: 300ms, on_reject: {reject}}}}}
        - {{id: told, transform: "{{{{ steps.consent.output.approved }}}}"}}
        """
    )

    run = installation.start(name, wait=25)

    if reject == "fail":
        assert (run["status"], run["error"]["code"]) == ("failed", "approval_expired")
    else:
        assert (run["status"], run["output"]) == ("done", False)
    assert kinds(installation, run["run_id"], "approval_expired") == ["approval_expired"]


async def test_children_are_cancelled_with_their_parent(
    installation: Installation, publish: Publish
) -> None:
    last = publish("- {id: long, wait: {for: 20d}}")
    middle = publish(f"- {{id: deeper, workflow: {{name: {last}}}}}")
    first = publish(f"- {{id: deep, workflow: {{name: {middle}}}}}")
    run_id = installation.start(first)["run_id"]
    family = [run_id]

    def child() -> str:
        children = installation.get(family[-1])["children"]
        assert children
        return str(children[0]["run_id"])

    while len(family) < 3:
        family.append(await eventually(child))
    await installation.until(family[-1], "waiting")
    installation.penstock("runs", "cancel", run_id)

    for member in family:
        assert (await installation.until(member))["status"] == "cancelled"


def test_child_that_fails_fails_its_parent_with_its_error(
    installation: Installation, publish: Publish
) -> None:
    child = publish("- {id: stop, end: {status: failed, message: not today}}")
    parent = publish(f"- {{id: sub, workflow: {{name: {child}}}}}")
    tolerant = publish(
        f"- {{id: sub, workflow: {{name: {child}}}, on_error: continue, fallback: instead}}"
    )

    assert "not today" in failed(installation, parent)["error"]["message"]
    assert finished(installation, tolerant) == "instead"


async def test_message_to_a_run_by_its_id_arrives(
    installation: Installation, publish: Publish
) -> None:
    listener = publish(
        """
        - {id: heard, wait: {signal: {name: word, match: "signal.payload.n == 2"}}}
        - {id: said, transform: "{{ steps.heard.output.payload.n }}"}
        """
    )
    sender = publish(
        """
        - id: each
          map:
            over: "[1, 2, 3]"
            concurrency: 1
            steps:
              - id: tell
                send: {to: {run: "{{ input }}"}, name: word, payload: {n: "{{ item }}"}}
        """
    )
    run_id = installation.start(listener)["run_id"]
    await installation.until(run_id, "waiting")

    run = installation.start(sender, run_id, wait=25)

    assert (await installation.until(run_id))["output"] == 2
    # A run that has ended takes no more messages: the third may find it so.
    assert run["status"] in ("done", "failed"), run


def test_end_within_a_map_ends_the_run_at_once(
    installation: Installation, publish: Publish
) -> None:
    name = publish(
        """
        - id: each
          map:
            over: input
            steps:
              - {id: found, if: item == "x", end: {output: "{{ index }}"}}
              - {id: long, wait: {for: 20d}}
        """
    )

    assert finished(installation, name, ["a", "x", "b"]) == 1


def test_http_step_is_repeated_after_what_may_pass_and_not_after_a_refusal(
    installation: Installation, publish: Publish
) -> None:
    def respond(call: Call) -> Answer:
        if call.path == "/refused":
            return Answer(status=422, body={"why": "no"})
        return Answer(status=503) if len(server.calls) < 3 else Answer(body=[1, 2])

    with HttpServer(respond) as server:
        name = publish(
            f"""
            - id: ask
              http: {{url: "{server.url}/{{{{ input }}}}", response: "{{{{ body }}}}"}}
              retry: {{max_attempts: 3, initial_seconds: 0.05}}
            """
        )
        refused = failed(installation, name, "refused")
        asked = len(server.calls)
        server.calls.clear()
        output = finished(installation, name, "ok")
        calls = len(server.calls)

    assert (asked, calls, output) == (1, 3, [1, 2])
    assert refused["error"]["family"] == "rejected"


def test_run_that_fails_is_undone_in_reverse_then_told_then_closed(
    installation: Installation, publish: Publish
) -> None:
    def respond(call: Call) -> Answer:
        return Answer(body=call.path)

    with HttpServer(respond) as server:

        def post(path: str) -> str:
            return f'http: {{method: POST, url: "{server.url}/{path}"}}'

        def undo(step: str) -> str:
            return f"compensate: {{{post(f'undo/{{{{ steps.{step}.output }}}}')}}}"

        name = publish(
            f"""
            - {{id: one, tool: add, input: {{a: 1, b: 0}}, {undo("one")}}}
            - id: skipped
              if: "false"
              tool: add
              input: {{a: 2, b: 0}}
              {undo("skipped")}
            - {{id: two, tool: add, input: {{a: 1, b: 2}}, {undo("two")}}}
            - {{id: bad, tool: divide, input: {{a: 1, b: 0}}}}
            """,
            on_error=f"[{{id: tell, {post('{{ error.code }}')}}}]",
            **{"finally": f"[{{id: close, {post('closed')}}}]"},
        )
        run = failed(installation, name)
        paths = [call.path for call in server.calls]

    assert run["error"]["code"] == "division_by_zero"
    assert paths == ["/undo/3", "/undo/1", "/division_by_zero", "/closed"]


def test_run_that_succeeds_is_closed_and_nothing_else(
    installation: Installation, publish: Publish
) -> None:
    name = publish(
        "- {id: one, transform: 1}",
        on_error="[{id: tell, transform: bad}]",
        **{"finally": "[{id: close, transform: closed}]"},
    )

    run = installation.start(name, wait=25)

    assert (run["status"], run["output"]) == ("done", 1)
    done = {
        event["data"]["record_id"]
        for event in installation.log(run["run_id"])
        if event["type"] == "node_done"
    }
    assert "close" in done
    assert "tell" not in done


def test_everything_that_is_wrong_is_said_at_once_with_what_is_allowed(
    installation: Installation,
) -> None:
    said = installation.penstock(
        "apply",
        "-f",
        "-",
        given=textwrap.dedent(
            """
            apiVersion: penstock/v1
            kind: Workflow
            metadata: {name: all-wrong}
            spec:
              steps:
                - {id: one, tool: no_such_tool}
                - {id: One, transform: 1}
                - {id: three, transform: "{{ steps.nowhere.output }}"}
                - {id: four, if: "1 +", transform: 1}
                - {id: five, transform: 1, depends_on: [six]}
            """
        ),
        code=2,
    )

    for path in (
        "steps[0].tool",
        "steps[1].id",
        "steps[2].transform",
        "steps[3].if",
        "[4].depends",
    ):
        assert path in said, said
