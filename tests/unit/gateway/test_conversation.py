from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import JsonValue

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    ChatMessage,
    Decision,
    DefinitionKind,
    RunEnded,
    RunInvoked,
    RunStatus,
)
from penstock.runs.messages import user_text
from penstock.runs.state import RunState
from penstock_gateway.core.conversation import answer_text, continued

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EARLIER = (
    ChatMessage(role="user", content="one"),
    ChatMessage(role="assistant", content="two"),
)


def state(ended: RunEnded | None) -> RunState:
    invoked = RunInvoked(
        occurred_at=NOW,
        name="a",
        kind=DefinitionKind.AGENT,
        version=1,
        plan_digest="d",
        input="three",
        history=EARLIER,
    )
    return RunState("t", 0, "R", invoked=invoked, ended=ended)


def ended(output: JsonValue, error: ErrorInfo | None = None) -> RunEnded:
    status = RunStatus.FAILED if error else RunStatus.DONE
    return RunEnded(
        occurred_at=NOW,
        decision=Decision(cause_seq=0),
        status=status,
        output=output,
        error=error,
    )


def said(messages: tuple[ChatMessage, ...]) -> list[str]:
    return [message.content for message in messages]


def test_history_goes_on_with_question_and_answer() -> None:
    assert said(continued(state(ended("four")), 50)) == ["one", "two", "three", "four"]


def test_history_of_a_run_without_answer_ends_with_its_question() -> None:
    assert said(continued(state(None), 50)) == ["one", "two", "three"]
    failed = ended(None, ErrorInfo(code="x", message="x"))
    assert said(continued(state(failed), 50)) == ["one", "two", "three"]


def test_history_keeps_the_newest_messages() -> None:
    assert said(continued(state(ended("four")), 2)) == ["three", "four"]
    assert continued(state(ended("four")), 0) == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ({"message": "m"}, "m"),
        ({"text": "t"}, "t"),
        ({"message": "m", "more": 1}, '{"message": "m", "more": 1}'),
        ({"city": "Köln"}, '{"city": "Köln"}'),
        (7, "7"),
        (None, "null"),
    ],
)
def test_text_follows_the_engines_rule(value: JsonValue, text: str) -> None:
    assert user_text(value) == text


def test_answer_of_an_agent_is_its_text() -> None:
    assert answer_text({"text": "hello", "output": {"a": 1}}) == "hello"
    assert answer_text({"text": "", "output": 1}) == '{"text": "", "output": 1}'
    assert answer_text({"sum": 3}) == '{"sum": 3}'
