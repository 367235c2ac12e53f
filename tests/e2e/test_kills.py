"""Runs in every kind of wait and of work, while every process of the stack is killed once."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import httpx

from tests.support.http_server import Answer, Call, HttpServer
from tests.support.installation import Installation
from tests.support.waiting import eventually

DOCUMENTS: Final = """
apiVersion: penstock/v1
kind: Tool
metadata: {name: shelf}
spec: {client: {}, parameters: {type: object}}
---
apiVersion: penstock/v1
kind: Tool
metadata: {name: power, description: Asks first.}
spec:
  builtin: {}
  parameters: {type: object, properties: {a: {type: number}, b: {type: number}}}
  policy: require_approval
  approval: {message: "Really?", expires_seconds: 1h}
---
apiVersion: penstock/v1
kind: Tool
metadata: {name: multiply}
spec:
  builtin: {}
  parameters: {type: object, properties: {a: {type: number}, b: {type: number}}}
---
apiVersion: penstock/v1
kind: Agent
metadata: {name: patient}
spec:
  model: scripted/patient
  tools: [multiply]
  script:
    turns:
      - text: Let me see.
        delay_seconds: 6
        tool_calls: [{name: multiply, arguments: {a: 6, b: 7}}]
      - {text: "{{ tools[0] }}"}
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: listener}
spec:
  steps:
    - {id: heard, wait: {signal: {name: word, correlation: "room-{{ input }}"}}}
    - {id: said, transform: "{{ steps.heard.output.payload }}"}
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: speaker}
spec:
  steps:
    - {id: tell, send: {to: {correlation: "room-{{ input }}"}, name: word, payload: hello}}
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: everything}
spec:
  input: {type: object}
  concurrency: {key: input.key, max: 1, policy: queue}
  steps:
    - id: all
      if: input.long
      parallel:
        branches:
          time: {steps: [{id: slept, wait: {for: 15s}}, {id: woke, transform: slept}]}
          event:
            steps:
              - {id: paid, wait: {signal: {name: paid, correlation: "order-{{ input.key }}"}}}
              - {id: amount, transform: "{{ steps.paid.output.payload.amount }}"}
          approval:
            steps:
              - {id: consent, approval: {message: "Yes?"}}
              - {id: agreed, transform: "{{ steps.consent.output.approved }}"}
          client: {steps: [{id: look, tool: shelf, input: {part: top}}]}
          call: {steps: [{id: guarded, tool: power, input: {a: 2, b: 10}}]}
          child: {steps: [{id: sub, workflow: {name: listener, input: "{{ input.key }}"}}]}
          agent: {steps: [{id: think, agent: patient, input: go}]}
          again:
            steps:
              - id: flaky
                http: {url: "URL/flaky"}
                retry: {max_attempts: 10, initial_seconds: 4, factor: 1}
          once:
            steps:
              - {id: due, wait: {signal: {name: due}}}
              - {id: pay, http: {method: POST, url: "URL/pay", at_most_once: true}}
          items:
            steps:
              - id: each
                map:
                  over: "[1, 2, 3, 4]"
                  concurrency: 2
                  steps:
                    - {id: nap, wait: {for: 4s}}
                    - {id: double, tool: multiply, input: {a: "{{ item }}", b: 2}}
    - {id: told, transform: "{{ steps.all.output }}"}
  finally:
    - {id: close, http: {method: POST, url: "URL/closed"}}
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: busy}
spec:
  steps:
    - id: book
      tool: multiply
      input: {a: "{{ input }}", b: 1}
      compensate: {http: {method: POST, url: "URL/undone/{{ input }}"}}
    - id: grow
      loop:
        until: steps.more.output >= 100
        steps:
          - id: more
            tool: multiply
            input: {a: "{{ iteration == 0 ? 2 : previous }}", b: 3}
    - id: odd
      branch:
        - if: {path: $.input, op: in, value: [1, 3, 5, 7]}
          steps: [{id: refuse, end: {status: failed, message: odd}}]
        - else:
            - id: sum
              map:
                over: "[1, 2, 3]"
                steps: [{id: one, tool: multiply, input: {a: "{{ item }}", b: 5}}]
  output: "{{ steps.odd.output }}"
"""
EXPECTED: Final = {
    "time": "slept",
    "event": 250,
    "approval": True,
    "client": {"state": "new"},
    "call": 1024,
    "child": "hello",
    "agent": {"text": "42"},
    "again": "fine",
    "once": {"receipt": 7},
    "items": [2, 4, 6, 8],
}
SERVICES: Final = (
    "gateway",
    "registry",
    "engine",
    "projector",
    "agent-runner",
    "tool-runner",
    "nats-server",
)
KEYED: Final = ("/v1/signals", "/v1/runs")
"""Requests that would count twice without a key."""


class Caller:
    """Somebody who asks again where no answer came, with the same key."""

    def __init__(self, installation: Installation) -> None:
        self._client = installation.client

    async def insist(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            try:
                answer = self._client.request(method, path, **options)
            except httpx.TransportError as error:
                raise AssertionError(f"no answer: {error}") from error
            assert answer.status_code in (200, 202), answer.text
            found: dict[str, Any] = answer.json()
            return found

        return await eventually(ask, within=30, every=0.2)

    async def start(self, name: str, given: Any, key: str) -> str:
        body = {"name": name, "input": given}
        run = await self.insist("POST", "/v1/runs", json=body, headers={"Idempotency-Key": key})
        return str(run["run_id"])

    async def over(self, run_id: str, within: float) -> dict[str, Any]:
        async def look() -> dict[str, Any]:
            run = await self.insist("GET", f"/v1/runs/{run_id}")
            assert run["status"] in ("done", "failed", "cancelled"), run
            return run

        return await eventually(look, within=within, every=0.2)


async def kill(installation: Installation, service: str) -> None:
    """Kill one process of the stack and wait until another one has taken its place."""
    before = installation.stack.pid(service)
    os.kill(before, signal.SIGKILL)

    def back() -> bool:
        process = installation.stack.state.processes[service]
        return process.ready is not False and process.pid not in (None, before)

    await eventually(back)


async def test_runs_that_wait_for_everything_end_right_although_every_process_is_killed(
    create_installation: Callable[..., Installation],
) -> None:
    asked: Counter[str] = Counter()

    def respond(call: Call) -> Answer:
        asked[call.path] += 1
        if call.path == "/pay":
            return Answer(wait=killed)
        # It is well again only after the tool-runner was killed, several attempts later.
        well = call.path != "/flaky" or killed.is_set()
        return Answer(body="fine") if well else Answer(status=503)

    killed = threading.Event()
    installation = create_installation()
    caller = Caller(installation)
    with HttpServer(respond) as server:
        installation.apply(DOCUMENTS.replace("URL", server.url))
        run_id = await caller.start("everything", {"key": "a", "long": True}, "first")
        queued = await caller.start("everything", {"key": "a", "long": False}, "second")
        path = f"/v1/runs/{run_id}"

        async def asks() -> set[str]:
            run = await caller.insist("GET", path)
            found = {one["record_id"] for one in run["waiting_for"]}
            assert found >= {"paid", "consent", "look", "guarded-a", "slept"}, run
            return found

        await eventually(asks)
        answers: dict[str, tuple[str, dict[str, Any]]] = {
            "gateway": (
                "/v1/signals",
                {"name": "paid", "correlation": "order-a", "payload": {"amount": 250}},
            ),
            "registry": (f"/v1/approvals/{run_id}/consent/approve", {}),
            "engine": (
                f"{path}/tool_results",
                {"results": [{"step_id": "look", "output": {"state": "new"}}]},
            ),
            "projector": (f"/v1/approvals/{run_id}/guarded-a/approve", {}),
            "agent-runner": ("/v1/runs", {"name": "speaker", "input": "a"}),
            "tool-runner": (f"{path}/pause", {}),
            "nats-server": (f"{path}/resume", {}),
        }
        busy = {}
        for number, service in enumerate(SERVICES):
            busy[number] = await caller.start("busy", number, f"busy-{number}")
            if service == "tool-runner":
                await caller.insist(
                    "POST",
                    f"{path}/signals",
                    json={"name": "due"},
                    headers={"Idempotency-Key": "due"},
                )
                await eventually(lambda: asked["/pay"])
            await kill(installation, service)
            there, body = answers[service]
            headers = {"Idempotency-Key": service} if there in KEYED else {}
            await caller.insist("POST", there, json=body, headers=headers)
            if service == "tool-runner":
                killed.set()

        receipt = {"action": "succeed", "output": {"receipt": 7}, "reason": "they have it"}
        await caller.insist("POST", f"{path}/steps/pay/resolve", json=receipt)
        run = await caller.over(run_id, 60)
        others = {number: await caller.over(one, 30) for number, one in busy.items()}
        last = await caller.over(queued, 30)

    assert (run["status"], run["output"]) == ("done", EXPECTED), run
    assert (last["status"], last["output"]) == ("done", None), last
    assert last["ended_at"] > run["ended_at"]
    for number, other in others.items():
        if number % 2:
            assert (other["status"], other["error"]["message"]) == ("failed", "odd"), other
        else:
            assert (other["status"], other["output"]) == ("done", [5, 10, 15]), other
    undone = {number for number in busy if asked[f"/undone/{number}"]}
    assert undone == {number for number in busy if number % 2}
    assert asked["/closed"] >= 2
    assert asked["/pay"] == 1

    events = installation.log(run_id)
    told = Counter(event["type"] for event in events)
    assert told["run_done"] == 1
    assert told["child_run_started"] == told["child_run_done"] == 1
    outcomes = Counter(
        event["data"]["record_id"] for event in events if event["type"] == "wait_ended"
    )
    assert set(outcomes) == {"slept", "paid", "due", *(f"nap-x{index}" for index in range(4))}
    assert set(outcomes.values()) == {1}
    assert told["tool_call_unknown"] == told["resolution_decision"] == 1
    child = installation.get(run["children"][0]["run_id"])
    assert (child["status"], child["output"]) == ("done", "hello")
    assert {process.restarts for process in installation.stack.state.processes.values()} == {1}
