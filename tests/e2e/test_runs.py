import itertools
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any

from tests.support.installation import Installation
from tests.support.waiting import eventually

FINAL = {"done", "failed", "cancelled"}
GROWTH = {"principal": 1000, "rate": 2, "years": 5}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_agent_with_tools_uses_them_over_several_turns(installation: Installation) -> None:
    run = installation.start("research-assistant", "For how many households?", wait=30)
    assert run["status"] == "done"
    assert "50000 households" in run["output"]["text"]
    run = installation.get(run["run_id"])
    assert [step["step_id"] for step in run["steps"]] == [
        "agent-1", "agent-1-0", "agent-1-1", "agent-2", "agent-2-0", "agent-3",
    ]  # fmt: skip
    assert run["usage"]["model_calls"] == 3
    log = installation.log(run["run_id"])
    started = [event["data"]["name"] for event in log if event["type"] == "tool_call_started"]
    assert sorted(started) == ["divide", "multiply", "multiply"]


def test_workflow_of_three_steps_passes_outputs_on(installation: Installation) -> None:
    run = installation.start("growth-report", GROWTH, wait=30)
    assert run["status"] == "done"
    assert run["output"]["value"] == 32000
    assert "32000" in run["output"]["report"]


def test_workflow_step_that_fails_ends_the_run_with_its_error(installation: Installation) -> None:
    installation.apply(
        {
            "apiVersion": "penstock/v1",
            "kind": "Workflow",
            "metadata": {"name": "by-zero"},
            "spec": {"steps": [{"id": "one", "tool": "divide", "input": {"a": 1, "b": 0}}]},
        }
    )
    run = installation.start("by-zero", wait=30)
    assert run["status"] == "failed"
    assert run["error"]["code"] == "division_by_zero"


def test_agent_whose_model_is_busy_is_tried_again(
    installation: Installation, create_agent: Callable[..., str]
) -> None:
    error = {"code": "rate_limited", "family": "transient", "attempts": 1}
    name = create_agent(
        {"text": "here I am", "error": {**error, "retry_after_seconds": 0.05}},
        retry={"initial_seconds": 0.05, "jitter": 0},
    )
    run = installation.start(name, "hello", wait=30)
    assert run["status"] == "done"
    events = kinds(installation.log(run["run_id"]))
    assert events.count("agent_invoke_failed") == 1
    assert "step_waiting" in events


def test_start_with_the_same_key_gives_the_same_run(installation: Installation) -> None:
    key = uuid.uuid4().hex
    first = installation.start("growth-report", GROWTH, key=key)
    again = installation.start("growth-report", GROWTH, key=key, wait=30)
    assert again["run_id"] == first["run_id"]
    other = {"name": "growth-report", "input": {**GROWTH, "years": 6}}
    refused = installation.client.post("/v1/runs", json=other, headers={"Idempotency-Key": key})
    assert refused.status_code == 422
    assert refused.json()["code"] == "idempotency_key_reused"


async def test_cancel_of_a_running_step_stops_the_run_at_once(
    installation: Installation, create_agent: Callable[..., str]
) -> None:
    name = create_agent({"text": "slowly " * 50, "delay_seconds": 60})
    run_id = installation.start(name, "hello")["run_id"]
    await eventually(lambda: "agent_invoke_started" in kinds(installation.log(run_id)))
    answer = installation.client.post(f"/v1/runs/{run_id}/cancel", json={"reason": "enough"})
    assert answer.status_code in (200, 202)
    await eventually(lambda: installation.get(run_id)["status"] == "cancelled")
    events = kinds(installation.log(run_id))
    assert events[-1] == "run_cancelled"
    assert "agent_invoke_done" not in events
    again = installation.client.post(f"/v1/runs/{run_id}/cancel", json={})
    assert again.status_code == 200


def test_stream_of_a_run_equals_its_log(
    installation: Installation, create_agent: Callable[..., str]
) -> None:
    text = "one two three four five"
    name = create_agent({"text": text, "delay_seconds": 0.3})
    run_id = installation.start(name, "count")["run_id"]
    events = [
        event.model_dump(mode="json", exclude_none=True) for event in installation.stream(run_id)
    ]
    pieces = [event["data"]["text"] for event in events if event["type"] == "agent_stream_delta"]
    assert "".join(pieces) == text
    of_log = [event for event in events if event["type"] != "agent_stream_delta"]
    assert of_log == installation.log(run_id)


def test_stream_cut_off_goes_on_after_the_last_id(
    installation: Installation, create_agent: Callable[..., str]
) -> None:
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    name = create_agent(
        {"tool_calls": [call], "delay_seconds": 0.2},
        {"text": "three", "delay_seconds": 0.2},
        tools=["add"],
    )
    run_id = installation.start(name, "1 + 2")["run_id"]
    with closing(installation.stream(run_id)) as stream:
        seen = list(itertools.islice(stream, 3))
    last = next(event.id for event in reversed(seen) if event.id)
    rest = list(installation.stream(run_id, after=last))
    before = [event.id for event in seen if event.id]
    after = [event.id for event in rest if event.id]
    assert before + after == [event["id"] for event in installation.log(run_id) if "id" in event]
    assert rest[-1].type == "run_done"


def test_session_remembers_what_was_said(
    installation: Installation, create_agent: Callable[..., str]
) -> None:
    name, session = create_agent({"text": "you said {{ input }}"}), uuid.uuid4().hex
    first = installation.start(name, "my name is Ada", session_id=session, wait=30)
    assert first["output"]["text"] == "you said my name is Ada"
    second = installation.start(name, "who am I?", session_id=session, wait=30)
    # The scripted model counts the words of all that it is told as its input tokens.
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


async def test_finished_run_appears_in_the_list(installation: Installation) -> None:
    run_id = installation.start("growth-report", GROWTH, wait=30)["run_id"]

    def listed() -> bool:
        answer = installation.client.get("/v1/runs", params={"limit": 100})
        found = {run["run_id"]: run["status"] for run in answer.json()["items"]}
        return found.get(run_id) == "done"

    await eventually(listed)


def test_start_of_an_unknown_name_is_refused_with_its_path(installation: Installation) -> None:
    answer = installation.client.post("/v1/runs", json={"name": "nobody"})
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["path"] == "name"
