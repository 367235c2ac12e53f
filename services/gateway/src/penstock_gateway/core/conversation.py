"""What a session remembers: the messages that a new run in it begins with."""

from __future__ import annotations

from pydantic import JsonValue

from penstock.contracts.facts import ChatMessage, RunInvoked
from penstock.runs.messages import user_text
from penstock.runs.state import RunState


def answer_text(output: JsonValue) -> str:
    """Return a run's output as the text of the answer: an agent's text stands for all of it."""
    if isinstance(output, dict):
        text = output.get("text")
        if isinstance(text, str) and text:
            return text
    return user_text(output)


def continued(previous: RunState, limit: int) -> tuple[ChatMessage, ...]:
    """Return the history of the run that follows ``previous`` in its session.

    Args:
        previous: The run before; its answer counts only if it has one.
        limit: Messages at most; the oldest are left out.
    """
    invoked = previous.invoked
    if invoked is None or limit <= 0:
        return ()
    messages = [*invoked.history, asked(invoked)]
    ended = previous.ended
    if ended is not None and ended.error is None and ended.output is not None:
        messages.append(ChatMessage(role="assistant", content=answer_text(ended.output)))
    return tuple(messages[-limit:])


def asked(invoked: RunInvoked) -> ChatMessage:
    """Return the user's message that started a run."""
    return ChatMessage(role="user", content=user_text(invoked.input))
