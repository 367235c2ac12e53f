"""The tour that ``make demo`` gives: agent, workflow, approval, webhook on a stack of its own.

Everything that is shown is checked as well; the exit code is 0 only if all of it is right.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from penstock.cli.definitions import apply_files, print_applied
from penstock.cli.events import EventPrinter
from penstock.cli.failure import CommandError, print_error
from penstock.cli.runs import print_runs
from penstock.client import Call, Client, ClientError
from penstock.contracts.rpc import Applied, Definition, Runners
from penstock.runs.events import ClientEvent, EventType
from penstock.runs.views import RunView
from penstock.stack import Stack, StackError, StackOptions

EXAMPLES = Path(__file__).parent
QUESTION = (
    "A solar park of 1,050,000 square metres yields 200 kWh per square metre and year. Each "
    "person of a household of 4 needs 1050 kWh a year. For how many such households is it enough?"
)
MODELS = {"OPENAI_API_KEY": "openai/gpt-5-mini", "ANTHROPIC_API_KEY": "anthropic/claude-haiku-4-5"}

BILL = """
apiVersion: penstock/v1
kind: Workflow
metadata: {name: share}
spec:
  steps:
    - {id: part, tool: divide, input: {a: "{{ input.total }}", b: "{{ input.people }}"}}
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: bill}
spec:
  steps:
    - id: lines
      map:
        over: input.lines
        steps: [{id: line, tool: multiply, input: {a: "{{ item.count }}", b: "{{ item.price }}"}}]
    - {id: total, transform: "{{ steps.lines.output.sum() }}"}
    - id: consent
      if: steps.total.output > 100
      approval: {message: "Pay {{ steps.total.output }}?", expires: 3d}
    - id: each
      workflow:
        name: share
        input: {total: "{{ steps.total.output }}", people: "{{ input.people }}"}
"""

screen = Console(highlight=False, soft_wrap=True)
checks = 0


def check(condition: object, claim: str) -> None:
    """Count what holds; end the demo at what does not."""
    global checks  # noqa: PLW0603 - a script of one page
    if not condition:
        raise CommandError(f"not so: {claim}")
    checks += 1
    screen.print(f"         [green]✓[/] [dim]{claim}[/]")


def heading(title: str) -> None:
    screen.print(f"\n[bold cyan]── {title} [/]")


def follow(
    client: Client, run_id: str, *, after: int = 0, until: EventType | None = None
) -> list[ClientEvent]:
    """Print the events of a run and return them, up to the first of type `until`."""
    printer, events = EventPrinter(screen), []
    with closing(client.follow(run_id, after=after)) as stream:
        for event in stream:
            printer.show(event)
            events.append(event)
            if event.type is until:
                break
    printer.close()
    return events


def of_type(events: list[ClientEvent], kind: EventType) -> list[ClientEvent]:
    return [event for event in events if event.type is kind]


def choose_model(client: Client) -> bool:
    """Give the assistant a real model if a key is set; return whether it has one."""
    for variable, model in MODELS.items():
        if os.environ.get(variable):
            patch = {"spec": {"model": model, "script": None}}
            path = "/v1/agents/research-assistant"
            client.send(Call(Definition, "PATCH", path, patch, params={"publish": "true"}))
            screen.print(f"         {variable} is set: asking [bold]{model}[/]")
            return True
    screen.print("         no API key in the environment: the model is [bold]scripted[/], no LLM")
    return False


def agent(client: Client) -> None:
    heading("An agent with two tools")
    real = choose_model(client)
    run = client.start("research-assistant", QUESTION)
    events = follow(client, run.run_id)
    check(events[-1].type == "run_done", "the run is done")
    tools = {event.data["name"] for event in of_type(events, EventType.TOOL_CALL_DONE)}
    check(tools == {"multiply", "divide"}, "two tools were called: multiply and divide")
    turns = of_type(events, EventType.AGENT_INVOKE_DONE)
    check(len(turns) >= 3, f"it took the model {len(turns)} turns")
    answer = json.dumps(events[-1].data["output"]).replace(",", "").replace(" ", "")
    check("50000" in answer, "the answer is 50,000 households")
    pieces = of_type(events, EventType.AGENT_STREAM_DELTA)
    check(real or pieces, "its text was streamed as it came")
    path = f"/v1/runs/{run.run_id}/events"
    log = client.send(Call(dict[str, Any], "GET", path, params={"limit": 1000}))["items"]
    ids = [event.id for event in events if event.id]
    check(ids == [event["id"] for event in log if event.get("id")], "the stream equals the log")


def workflow(client: Client) -> None:
    heading("A workflow of three steps")
    value, key = {"principal": 1000, "rate": 2, "years": 5}, secrets.token_hex(8)
    run = client.start("growth-report", value, idempotency_key=key)
    events = follow(client, run.run_id)
    check(events[-1].type == "run_done", "the run is done")
    finished = client.get(run.run_id)
    output: Any = finished.output
    check(len(finished.steps) == 3, "three steps ran")
    check(output["value"] == 32000, "1000 doubled five times is 32000")
    check("32000" in output["report"], "the report says so")
    again = client.start("growth-report", value, idempotency_key=key)
    check(again.run_id == run.run_id, "the same Idempotency-Key gives the same run")


def waiting(client: Client) -> None:
    heading("A workflow that waits for an approval, and is tried again")
    client.send(Call(Applied, "POST", "/v1/apply", {"documents": [BILL], "publish": True}))
    lines = [{"count": 3, "price": 40}, {"count": 2, "price": 15}]
    run_id = client.start("bill", {"lines": lines, "people": 0}).run_id
    events = follow(client, run_id, until=EventType.APPROVAL_CREATED)
    (pending,) = client.approvals(run_id=run_id)
    check(pending.message == "Pay 150?", f"it asks: {pending.message}")
    check(client.get(run_id).status == "waiting", "and waits, for days")
    client.approve(run_id, pending.record_id, digest=pending.digest, reason="a good evening")
    events = follow(client, run_id, after=events[-1].id or 0)
    check(events[-1].type == "run_failed", "shared among no people it fails")
    fork = client.fork(run_id, input={"lines": lines, "people": 4})
    events = follow(client, fork.run_id)
    check(events[-1].data["output"] == 37.5, "forked with four people each pays 37.5")
    again = {"tool_call_started", "approval_created"} & {event.type for event in events}
    check(not again, "no line was computed again, and no approval was needed again")


def webhook(client: Client, secret: bytes) -> None:
    heading("A signed webhook, delivered twice")
    body = json.dumps({"type": "deposit", "data": {"amount": 500, "rate": 3, "years": 2}}).encode()
    delivery, now = f"msg_{secrets.token_hex(8)}", str(int(time.time()))
    digest = hmac.new(secret, b".".join((delivery.encode(), now.encode(), body)), hashlib.sha256)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": delivery,
        "webhook-timestamp": now,
        "webhook-signature": "v1," + base64.b64encode(digest.digest()).decode(),
    }
    target = f"{client.url}/hooks/default/growth"
    first = httpx.post(target, content=body, headers=headers)
    check(first.status_code == 202, f"the delivery is accepted: {first.status_code}")
    run_id = first.json()["run_id"]
    events = follow(client, run_id)
    check(events[-1].type == "run_done", "the run that it started is done")
    output: Any = events[-1].data["output"]
    check(output["value"] == 4500, "500 tripled twice is 4500")
    second = httpx.post(target, content=body, headers=headers)
    check(second.is_success, f"the same delivery again is answered: {second.status_code}")
    check(second.json()["run_id"] == run_id, "it names the first run and has started nothing")
    forged = httpx.post(target, content=body.replace(b"500", b"999"), headers=headers)
    check(forged.status_code == 401, "a changed body under the old signature is refused: 401")


def overview(client: Client) -> None:
    heading("All runs")
    deadline = time.monotonic() + 30
    found: list[RunView] = []
    while time.monotonic() < deadline:
        found = list(client.runs(limit=100))
        if len(found) >= 7 and all(run.ended_at for run in found):
            break
        time.sleep(0.05)
    print_runs(found)
    check(len(found) == 7, "there are seven runs, none was started twice")
    failed = sorted(run.name for run in found if run.status != "done")
    check(failed == ["bill", "share"], "all are done, but for the bill for no people")
    triggers = [run.trigger for run in found]
    check(triggers.count("webhook") == 1, "one of them came by webhook")


def show(stack: Stack, data_dir: Path, secret: bytes) -> None:
    screen.print(f"         {stack.url}, bus {stack.nats_url}, {data_dir}")
    check(stack.ready_seconds < 30, f"ready after {stack.ready_seconds:.2f} s")
    heading("penstock apply -f examples/")
    with Client(stack.url) as client:
        print_applied(apply_files(client, [str(EXAMPLES)]))
        runners = client.send(Call(Runners, "GET", "/v1/runners")).items
        check(len(runners) >= 2, f"{len(runners)} runner pools are registered")
        agent(client)
        workflow(client)
        waiting(client)
        webhook(client, secret)
        overview(client)


def main() -> int:
    data_dir = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    secret = secrets.token_bytes(24)
    variable = "whsec_" + base64.b64encode(secret).decode()
    heading("Starting nats-server and the services")
    try:
        options = StackOptions(data_dir=str(data_dir), port=0, nats_port=0)
        env = {"PENSTOCK_SECRET_EXAMPLE_WEBHOOK": variable}
        with Stack(options, env=env) as stack:
            show(stack, data_dir, secret)
            heading("The end")
            processes = [process.pid for process in stack.state.processes.values()]
        check(not any(Path(f"/proc/{pid}").exists() for pid in processes), "all processes ended")
    except (CommandError, ClientError, StackError) as error:
        print_error(error if isinstance(error, CommandError) else CommandError(str(error)))
        screen.print(f"[dim]logs are in {data_dir}/logs[/]")
        return 1
    except KeyboardInterrupt:
        screen.print()
    shutil.rmtree(data_dir)
    screen.print(f"\n[bold green]{checks} checks, all right.[/]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
