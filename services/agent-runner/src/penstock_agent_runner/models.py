"""The port to whatever answers a turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from penstock_agent_runner.core.turn import AgentConfig, Turn, TurnInput

Emit = Callable[[str], Awaitable[None]]


def unmasked(text: str) -> str:
    """Return the text as it is: there is nothing to hide."""
    return text


@dataclass(frozen=True, slots=True)
class Request:
    """One turn that is to be answered."""

    config: AgentConfig
    input: TurnInput
    run_id: str
    attempt: int
    seconds: float
    """Time that is left."""
    idempotency_key: str
    traceparent: str | None = None
    mask: Callable[[str], str] = unmasked
    """Hides the step's secrets in text that is to be cut."""


class Model(Protocol):
    """Answers turns: a provider's model, a script, or an agent elsewhere."""

    async def answer(self, request: Request, emit: Emit) -> Turn:
        """Answer a turn; ``emit`` takes its text piece by piece as it comes.

        Raises:
            PenstockError: Of the family that fits the failure.
        """
        ...
