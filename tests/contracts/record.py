"""Writes golden logs: runs that the engine of this release is led through, one folder a release.

`python -m tests.contracts.record plan-3` writes `golden/logs/plan-3`, and refuses to write over
what is there. The stories stay; a release that can do more adds some.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    NodeRecord,
    RunEnded,
    Seed,
    SeededStep,
    SignalKind,
    SignalReceived,
    StepKind,
    StepResult,
)
from penstock.contracts.ids import answer_signal_id
from penstock.contracts.plan import (
    ApprovalPolicy,
    Block,
    BranchNode,
    EndNode,
    LoopNode,
    MapNode,
    Node,
    ParallelNode,
    ToolParameter,
    TransformNode,
    WaitNode,
)
from penstock.contracts.usage import Usage
from penstock.runs.state import RunState
from tests.support.simulation import (
    PREFIX,
    QUICK,
    START,
    Driver,
    agent_node,
    at,
    make_agent,
    make_plan,
    make_tool,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)

LOGS = Path(__file__).parent / "golden" / "logs"


def signal(
    run: Driver, signal_id: str, name: str, kind: SignalKind = "event", **fields: Any
) -> None:
    now = fields.pop("now", 2.0)
    fact = SignalReceived(occurred_at=at(now), name=name, kind=kind, **fields)
    run.give(subjects.signal(PREFIX, signal_id), fact)


def answer(run: Driver, kind: SignalKind, record_id: str, payload: Any, now: float = 2.0) -> None:
    """Answer an open node record as the gateway would."""
    node_record = run.state.node_records[record_id].node_record
    digest = node_record.request.digest if node_record.request is not None else ""
    signal_id = answer_signal_id(kind, record_id, digest)
    given = {**payload, "digest": digest} if kind == "approval" else payload
    signal(run, signal_id, kind, kind, target=record_id, payload=given, now=now)


def due(run: Driver, step_id: str) -> float:
    """Return when a step's next attempt is due, in seconds since the start."""
    wait = run.state.steps[step_id].wait
    assert wait is not None
    return (wait.due_at - START).total_seconds()


def show(node_id: str, template: Any, *needs: str, **changes: Any) -> Node:
    return TransformNode(id=node_id, input=template, needs=needs, **changes)


def tool_with_a_retry() -> Driver:
    parameters: Any = {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    }
    retry = QUICK.model_copy(update={"jitter": 0.2})
    total: Any = {"a": "{{ steps.look.output }}", "b": "{{ steps.other.output }}"}
    plan = make_plan(
        tool_node("look", input={"a": "{{ input.n }}", "b": 1}),
        tool_node("other", input={"a": 5, "b": 6}),
        tool_node("sum", "look", "other", input=total),
        output={"sum": "{{ steps.sum.output }}", "city": "{{ input.city }}"},
        tools=[make_tool("add", retry=retry, parameters=parameters)],
    )
    run = Driver(plan, input={"n": 4, "city": "Ulm"}, tags={"team": "blue"}).start()
    run.result("other", 11, now=0.5).result("look", now=1, error=transient())
    run.wake(due(run, "look")).result("look", 5, attempt=2, now=3)
    return run.result("sum", 16, now=4)


def agent_with_tools() -> Driver:
    sources = {
        "key": ToolParameter(source="system", value="{{ run.tenant }}"),
        "b": ToolParameter(source="default", value=7),
    }
    plan = make_plan(
        agent_node("writer"),
        kind="agent",
        agents=[make_agent(tools=("add",), instructions="Add.", parameters={"temperature": 0.1})],
        tools=[make_tool("add", description="Adds.", sources=sources)],
    )
    run = Driver(plan, input="What is 2 + 3?", session_id="s-1").start()
    asked = uses(("add", {"a": 2, "b": 3}), ("rm", {"path": "/"}), ("add", {"a": 1}), text="I add.")
    spent = Usage(input_tokens=20, output_tokens=8, cost_usd=0.001, model_calls=1)
    run.result("writer-1", asked, now=1, usage=spent)
    run.result("writer-1-2", 8, now=2).result("writer-1-0", now=2.5, error=rejected())
    return run.result("writer-2", responds("It is 5."), now=4, usage=spent)


def two_and_their_sum() -> Driver:
    plan = make_plan(
        tool_node("look", input={"a": 1}),
        tool_node("other", input={"a": 2}),
        tool_node("sum", "look", "other"),
    )
    return Driver(plan).start().result("look", 1, now=1)


def cancelled() -> Driver:
    return two_and_their_sum().cancel("not needed any more", now=2).result("other", 2, now=3)


def failed() -> Driver:
    return two_and_their_sum().result("other", now=2, error=rejected())


def timer_wait() -> Driver:
    plan = make_plan(
        tool_node("look", input={"a": 1}),
        timeout_seconds=90_000.0,
        tools=[make_tool("add", timeout_seconds=30.0)],
    )
    run = Driver(plan).start().result("look", now=1, error=transient(7200.0))
    # The second attempt is lost: its time is over.
    first = due(run, "look")
    run.wake(first).wake(first + 40)
    last = due(run, "look")
    return run.wake(last).result("look", {"n": 1}, attempt=3, now=last + 5)


def map_and_branch() -> Driver:
    body = Block(
        name="each",
        nodes=(
            tool_node("work", input={"a": "{{ item }}"}),
            BranchNode(
                id="size",
                needs=("work",),
                conditions=("steps.work.output > 5", None),
                blocks=(
                    Block(name="large", nodes=(show("large", "large {{ index }}"),)),
                    Block(name="small", nodes=(show("small", "small {{ index }}"),)),
                ),
            ),
        ),
    )
    plan = make_plan(
        MapNode(id="each", over="input.items", body=body, concurrency=2),
        show("count", "{{ size(steps.each.output) }}", "each", when="size(input.items) > 2"),
        show("never", "x", "each", when="false"),
        output={"each": "{{ steps.each.output }}", "count": "{{ steps.count.output }}"},
    )
    run = Driver(plan, input={"items": [1, 7, 3]}).start()
    run.result("work-x1", 8, now=1).result("work-x0", now=2, error=transient())
    run.result("work-x2", 4, now=2.5)
    moment = due(run, "work-x0")
    return run.wake(moment).result("work-x0", 2, attempt=2, now=moment + 3)


def loop_and_parallel() -> Driver:
    body = Block(name="again", nodes=(tool_node("step", input={"a": "{{ iteration }}"}),))
    both = ParallelNode(
        id="both",
        needs=("again",),
        blocks=(
            Block(name="left", nodes=(tool_node("left"),)),
            Block(name="right", nodes=(tool_node("right"),)),
        ),
        wait=1,
    )
    plan = make_plan(
        LoopNode(id="again", body=body, until="previous >= 2"),
        both,
        EndNode(id="stop", needs=("both",), output={"done": True}),
        tool_node("unreached", "stop"),
    )
    run = Driver(plan).start()
    for index in range(3):
        run.result(f"step-x{index}", index, now=1 + index)
    return run.result("right", "r", now=5)


def waits_and_signals() -> Driver:
    plan = make_plan(
        WaitNode(id="nap", seconds=60),
        WaitNode(
            id="paid",
            needs=("nap",),
            signal="paid",
            match="signal.payload.order == input.order",
            correlation="order-{{ input.order }}",
            timeout_seconds=300,
        ),
        output="{{ steps.paid.output.payload.amount }}",
    )
    run = Driver(plan, input={"order": 17}).start().wake(60)
    signal(run, "s1", "paid", payload={"order": 3, "amount": 1}, now=61)
    signal(run, "p1", "pause", "pause", now=62)
    signal(run, "s2", "paid", payload={"order": 17, "amount": 9}, now=63)
    signal(run, "p2", "resume", "resume", now=64)
    return run


def approval_of_a_call() -> Driver:
    approval = ApprovalPolicy(role="operator", expires_seconds=60, message="Pay {{ input.who }}?")
    pay = make_tool("pay", policy="require_approval", approval=approval, at_most_once=True)
    plan = make_plan(
        agent_node("writer"),
        kind="agent",
        agents=[make_agent(tools=("pay",))],
        tools=[pay],
    )
    run = Driver(plan, input={"who": "Ada"}).start()
    run.result("writer-1", uses(("pay", {"to": "Ada"}), ("pay", {"to": "Bob"})), now=1)
    answer(run, "approval", "writer-1-0-a", {"decision": "approve", "by": "eve"}, now=2)
    answer(run, "approval", "writer-1-1-a", {"decision": "reject", "reason": "who?"}, now=3)
    lost = StepResult(
        occurred_at=at(4),
        kind=StepKind.TOOL,
        name="pay",
        status="unknown",
        error=ErrorInfo(code="outcome_unknown", message="a runner was lost"),
        started_at=at(3),
    )
    run.give(subjects.result(PREFIX, "writer-1-0", 1), lost)
    answer(run, "resolution", "writer-1-0-r", {"action": "succeed", "output": "paid"}, now=5)
    return run.result("writer-2", responds("Paid."), now=6)


def compensated() -> Driver:
    plan = make_plan(
        tool_node("book", compensate=tool_node("unbook", input={"a": "{{ steps.book.output }}"})),
        tool_node("pay", "book"),
        on_error=(show("mourn", "{{ error.code }}"),),
        finally_=(tool_node("tidy"),),
    )
    run = Driver(plan).start().result("book", 7, now=1).result("pay", now=2, error=rejected())
    return run.result("unbook", "gone", now=3).result("tidy", "clean", now=4)


def network() -> Driver:
    plan = make_plan(
        agent_node("desk", ref="desk"),
        kind="network",
        agents=[
            make_agent("desk", routes=("billing",), responds_to="nobody", description="Front"),
            make_agent("billing", routes=("desk",), responds_to="user", tools=("add",)),
        ],
    )
    route: Any = {"action": "route_to_agent", "agent": "billing", "message": "Refund", "text": ""}
    wrong: Any = {**route, "agent": "moon"}
    run = Driver(plan, input="Refund A-17").start()
    run.result("desk-1", wrong, now=1).result("desk-2", route, now=2)
    return run.result("desk-3", responds("Done."), now=3)


def replayed() -> Driver:
    plan = make_plan(
        tool_node("look", input={"a": 1}),
        show("shape", "{{ steps.look.output }}", "look"),
        tool_node("sum", "shape", input={"a": "{{ steps.shape.output }}"}),
    )
    seeded = SeededStep(
        step_id="look",
        kind=StepKind.TOOL,
        queue="builtin",
        attempt=2,
        node_id="look",
        name="add",
        output=41,
        started_at=START - timedelta(days=1),
        ended_at=START - timedelta(hours=23),
    )
    made = NodeRecord(record_id="shape", kind="transform", status="succeeded", output=41)
    seed = Seed(steps=(seeded,), node_records=(made,))
    return Driver(plan, seed=seed, trigger="fork").start().result("sum", 42, now=1)


STORIES: tuple[Callable[[], Driver], ...] = (
    tool_with_a_retry,
    agent_with_tools,
    cancelled,
    failed,
    timer_wait,
    map_and_branch,
    loop_and_parallel,
    waits_and_signals,
    approval_of_a_call,
    compensated,
    network,
    replayed,
)


def summary(state: RunState) -> dict[str, Any]:
    """Return what is compared of a state."""
    ended = state.ended
    return {
        "status": state.status.value,
        "decisions": state.decisions,
        "last_seq": state.last_seq,
        "output": ended.output if ended is not None else None,
        "error": ended.error.code if ended is not None and ended.error is not None else None,
        "input_tokens": state.usage.input_tokens,
        "cost_usd": state.usage.cost_usd,
        "steps": {
            step_id: f"{step.status} at attempt {step.attempt}"
            for step_id, step in sorted(state.steps.items())
        },
        "node_records": {
            record_id: made.node_record.status
            for record_id, made in sorted(state.node_records.items())
        },
    }


def record(folder: Path) -> None:
    """Write the logs of all stories into a folder of their own."""
    folder.mkdir(parents=True)
    for story in STORIES:
        run, file = story(), folder / story.__name__
        assert isinstance(run.log.messages[-1].entry.fact, RunEnded) or run.ended, story.__name__
        lines = [
            json.dumps(
                {"seq": stored.seq, "subject": stored.subject, "fact": json.loads(stored.body)},
                ensure_ascii=False,
                separators=(",", ":"),
            )
            for stored in run.log.messages
        ]
        file.with_suffix(".ndjson").write_text("\n".join(lines) + "\n", encoding="utf-8")
        file.with_suffix(".plan.json").write_bytes(run.plan.to_bytes())
        file.with_suffix(".state.json").write_text(
            json.dumps(summary(run.log.state), indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    record(LOGS / sys.argv[1])
