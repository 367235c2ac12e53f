"""Stubs: what takes the place of tools and agents, and how its answer becomes an outcome."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Final, Literal

from pydantic_core import from_json, to_json

from penstock.contracts.errors import ErrorInfo, PenstockError
from penstock.contracts.json import Json


class NoResult:
    """Type of ``NO_RESULT``."""


NO_RESULT: Final = NoResult()
"""Answer of a runner that is lost: the step has no result until its deadline passes."""


class InOrder:
    """One answer for each call; the last one is repeated."""

    def __init__(self, *answers: Answer) -> None:
        """Take the answers.

        Raises:
            ValueError: There are none.
        """
        if not answers:
            raise ValueError("at least one answer is needed")
        self._answers = list(answers)

    def next(self) -> Answer:
        """Return the answer of this call."""
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


Answer = Json | Callable[..., object] | PenstockError | InOrder | NoResult
"""A stub: a fixed output, a function, an error to raise, answers in order, or no result."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a stub."""

    kind: Literal["tool", "agent"]
    name: str
    step_id: str
    node_id: str
    attempt: int
    input: Json
    config: Json


@dataclass(frozen=True, slots=True)
class Answered:
    """The outcome of a call."""

    output: Json = None
    error: ErrorInfo | None = None


def answered(answer: Answer, call: Call) -> Answered | None:
    """Return the outcome of a call, or ``None`` where there is no result.

    A function takes a tool's arguments by name, or an agent's list of messages. It fails the step
    by one of Penstock's errors; any other exception fails the test.
    """
    if isinstance(answer, InOrder):
        return answered(answer.next(), call)
    if isinstance(answer, NoResult):
        return None
    if isinstance(answer, PenstockError):
        return Answered(error=answer.info())
    try:
        output = _called(answer, call) if callable(answer) else answer
    except PenstockError as error:
        return Answered(error=error.info())
    if isinstance(output, NoResult):
        return None
    if call.kind == "agent" and not _is_action(output):
        output = _response(output)
    return Answered(output=from_json(to_json(output)))


def _called(function: Callable[..., object], call: Call) -> object:
    given = deepcopy(call.input)
    if call.kind == "agent":
        return function(given["messages"] if isinstance(given, dict) else given)
    if isinstance(given, dict):
        return function(**given)
    return function() if given is None else function(given)


def _response(output: object) -> object:
    if isinstance(output, str):
        return {"action": "respond", "text": output}
    return {"action": "respond", "text": "", "output": output}


def _is_action(output: object) -> bool:
    return isinstance(output, dict) and "action" in output


def use_tools(*calls: tuple[str, dict[str, Json]], text: str = "") -> Json:
    """Return an agent's action: call tools, each by name and arguments."""
    return {
        "action": "use_tools",
        "text": text,
        "calls": [
            {"id": f"call_{number}", "name": name, "arguments": arguments}
            for number, (name, arguments) in enumerate(calls)
        ],
    }


def route_to_agent(agent: str, message: str = "") -> Json:
    """Return an agent's action: hand the conversation over to another agent."""
    return {"action": "route_to_agent", "agent": agent, "message": message}
