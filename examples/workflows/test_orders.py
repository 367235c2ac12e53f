"""How to test a workflow in memory, with stubbed steps and virtual time."""

from __future__ import annotations

from pathlib import Path

from penstock.runner import RejectedError, TransientError
from penstock_testing import NO_RESULT, InOrder, LocalEngine, use_tools

ROOT = Path(__file__).parents[1]

ORDER = """
apiVersion: penstock/v1
kind: Workflow
metadata: {name: order}
spec:
  steps:
    - id: price
      tool: price
      input: {article: "{{ input.article }}"}
      retry: {max_attempts: 3, initial_seconds: 10, jitter: 0}
      timeout_seconds: 60
    - id: release
      approval: {message: "Pay {{ steps.price.output }}?", expires: 1h}
    - id: paid
      wait: {signal: {name: paid}, timeout: P1D}
    - id: thanks
      agent: writer
      input: "{{ steps.paid.output.payload }}"
  output: "{{ steps.thanks.output.text }}"
---
apiVersion: penstock/v1
kind: Tool
metadata: {name: price, description: Price of an article.}
spec:
  runner: {queue: shop}
  parameters: {type: object, properties: {article: {type: string}}, required: [article]}
---
apiVersion: penstock/v1
kind: Agent
metadata: {name: writer, description: Writes to customers.}
spec: {model: scripted/none, instructions: Be kind., tools: [price]}
"""


def order_engine() -> LocalEngine:
    engine = LocalEngine([ORDER])
    engine.stub_tool("price", lambda article: {"pen": 2, "ink": 5}[article])
    engine.stub_agent("writer", lambda messages: f"Thank you for {messages[-1]['content']}.")
    return engine


def test_whole_order() -> None:
    run = order_engine().run("order", {"article": "pen"})
    (approval,) = run.waiting_for
    assert approval.request is not None
    assert approval.request.message == "Pay 2?"

    run.approve(reason="small sum")
    run.signal("paid", "2 EUR")
    assert run.status == "done"
    assert run.output == "Thank you for 2 EUR."
    assert [call.name for call in run.calls] == ["price", "writer"]
    assert run.events[-1].type == "run_done"


def test_retries_take_virtual_time() -> None:
    engine = order_engine()
    engine.stub_tool("price", InOrder(TransientError("busy", "try later"), 2))
    run = engine.start("order", {"article": "pen"})
    assert run.steps["price"].attempt == 1

    run.advance(seconds=10)
    assert (run.steps["price"].attempt, run.steps["price"].status) == (2, "succeeded")


def test_errors_and_timeouts() -> None:
    engine = order_engine()
    engine.stub_tool("price", RejectedError("unknown_article", "we have none"))
    run = engine.run("order", {"article": "unicorn"})
    assert run.error is not None
    assert (run.status, run.error.code) == ("failed", "unknown_article")

    engine.stub_tool("price", NO_RESULT)
    run = engine.run("order", {"article": "pen"})
    assert run.steps["price"].error is not None
    assert run.steps["price"].error.code == "step_timeout"


def test_rejection_and_silence() -> None:
    run = order_engine().run("order", {"article": "pen"})
    run.reject(reason="too dear")
    assert run.error is not None
    assert run.error.code == "approval_rejected"

    run = order_engine().run("order", {"article": "pen"})
    run.advance(hours=1)
    assert run.error is not None
    assert run.error.code == "approval_expired"


def test_agent_that_calls_a_tool() -> None:
    engine = order_engine()
    engine.stub_agent("writer", InOrder(use_tools(("price", {"article": "ink"})), "It costs 5."))
    run = engine.run("writer", "What does ink cost?")
    assert run.status == "done"
    assert [call.name for call in run.calls] == ["writer", "price", "writer"]


def test_documents_of_a_file() -> None:
    engine = LocalEngine([ROOT / "growth-report.yaml", ROOT / "calculator.yaml"])
    engine.stub_tool("power", lambda a, b: a**b)
    engine.stub_tool("multiply", lambda a, b: a * b)
    engine.stub_agent("reporter", "Well done.")
    run = engine.run("growth-report", {"principal": 100, "rate": 1.5, "years": 2})
    assert run.output == {"value": 225.0, "report": "Well done."}
