"""Answers: what is sent is read back, and what has another form has a defined meaning."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts.answers import ApprovalAnswer, ResolutionAnswer, ToolAnswer, ToolError


@pytest.mark.parametrize(
    "answer",
    [
        ApprovalAnswer("approve", by="key"),
        ApprovalAnswer("reject", "too dear", "key"),
        ToolAnswer({"n": 1}),
        ToolAnswer(error=ToolError("down", "no network")),
        ResolutionAnswer("retry"),
        ResolutionAnswer("succeed", {"n": 1}, "seen in the ledger", "key"),
        ResolutionAnswer("fail", reason="not in the ledger"),
    ],
)
def test_answer_is_read_as_it_was_sent(answer: Any) -> None:
    assert type(answer).parse(answer.payload()) == answer


@pytest.mark.parametrize("payload", [None, "approve", [], {}, {"decision": "maybe", "reason": 3}])
def test_answer_of_another_form_rejects_and_fails(payload: Any) -> None:
    assert ApprovalAnswer.parse(payload) == ApprovalAnswer("reject")
    assert ToolAnswer.parse(payload) == ToolAnswer()
    assert ResolutionAnswer.parse(payload).action == "fail"


def test_failed_tool_without_an_error_gets_the_default_one() -> None:
    assert ToolAnswer.parse({"status": "failed"}) == ToolAnswer(error=ToolError())
