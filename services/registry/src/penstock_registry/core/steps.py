"""Steps: the language of workflows, one model for each kind of step.

A step is exactly one of the fields of `WORK`; the others define when it runs
and how failures are handled.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue, StringConstraints

from penstock.contracts.durations import MAX_DURATION_SECONDS
from penstock.contracts.ids import NodeId, Token
from penstock.contracts.rpc import Role
from penstock_registry.core.parts import (
    MAX_EXPRESSION,
    ChildLimitsSpec,
    Condition,
    Duration,
    DurationOrTemplate,
    HowMany,
    Part,
    RetrySpec,
    SecretHeader,
    Selector,
    WrittenObject,
)

Expression = Annotated[str, StringConstraints(min_length=1, max_length=MAX_EXPRESSION)]
Steps = Annotated["tuple[StepSpec, ...]", Field(min_length=1, max_length=1000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
OnError = Literal["fail", "continue"]


WORK: Final = (
    "agent",
    "tool",
    "http",
    "transform",
    "branch",
    "parallel",
    "map",
    "loop",
    "wait",
    "approval",
    "workflow",
    "send",
    "end",
)
"""The kinds of work, each a field of a step."""
BARE: Final = frozenset({"transform", "end"})
"""Kinds of work that need nothing behind their name."""
CALLED: Final = frozenset({"agent", "tool", "http", "workflow"})
"""Kinds that a runner or client executes, which may be retried and may time out."""


class HttpForm(Part):
    """The form of an HTTP request, of a tool or of a step."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str = Field(min_length=1, max_length=4000)
    """Values in it are percent-encoded, unless the whole URL is one template."""
    headers: dict[str, str | SecretHeader] = {}
    query: WrittenObject = {}
    json_body: JsonValue = Field(default=None, alias="json")
    """A body of JSON."""
    body: str | None = None
    """A body of text, instead of ``json``."""
    response: JsonValue = "{{ body }}"
    """Template of the output over ``status``, ``headers`` and ``body``; a tool's also over
    ``arguments``."""
    timeout_seconds: float = Field(default=30.0, gt=0, le=3600)
    """For the answer to one attempt."""
    max_response_bytes: int = Field(default=1024 * 1024, ge=1, le=64 * 1024 * 1024)


class HttpRequest(HttpForm):
    """A request over HTTP. Its strings are templates over the run's scope, ``secrets`` too."""

    at_most_once: bool = False
    """A lost attempt becomes ``unknown`` and needs a decision; it is never made again silently."""
    queue: Token = "http"
    """Queue of the tool-runners that send it."""


class BlockSpec(Part):
    """Steps that belong together, and their output."""

    steps: Steps
    output: JsonValue = None
    """Template of the output; where not given the output of the last step."""


class CaseSpec(Part):
    """One case of a branch: ``if`` and ``steps``, or ``else`` as the last one."""

    exactly_one = ("if", "else")

    when: Condition | None = Field(default=None, alias="if")
    """Condition under which the case is taken."""
    steps: Steps | None = None
    """The steps of this case."""
    otherwise: Steps | None = Field(default=None, alias="else")
    """The steps if no case before it is taken."""
    output: JsonValue = None
    """Template of the output; where not given the output of the last step."""
    name: NodeId | None = None
    """What the case is called in the log; ``case_1``, ``case_2``, ... and ``else`` if not given."""


class ParallelStep(Part):
    """Branches that run side by side; the output is an object with the output of each."""

    branches: dict[NodeId, BlockSpec] = Field(min_length=1, max_length=1000)
    """What runs, by name."""
    wait: HowMany = "all"
    """How many branches must succeed; the others are stopped then."""
    on_failure: Literal["fail_fast", "collect"] = "fail_fast"
    """``collect``: a branch that fails does not fail the step; its error stands in the output."""


class MapStep(Part):
    """Steps that run once for every item of a list; the output is a list in the same order."""

    over: Expression
    """CEL expression that gives the list."""
    variable: NodeId = Field(default="item", alias="as")
    """Name of the item in expressions; ``index`` counts from 0."""
    steps: Steps
    """The steps for each item."""
    output: JsonValue = None
    """Template of an item's output; where not given the output of the last step."""
    concurrency: int | None = Field(default=None, ge=1, le=10_000)
    """How many items are under way at once; all of them where not given."""
    max_items: int = Field(default=10_000, ge=1, le=10_000)
    """A longer list fails the step."""
    on_failure: Literal["fail_fast", "collect"] = "fail_fast"
    """``collect``: an item that fails does not fail the step; its error stands in the output."""


class LoopStep(Part):
    """Steps that run again and again; ``iteration`` counts from 0, ``previous`` is the output."""

    while_: Condition | None = Field(default=None, alias="while")
    """Checked before each iteration."""
    until: Condition | None = None
    """Checked after each iteration; it sees the steps of that iteration."""
    steps: Steps
    """The steps of each iteration."""
    output: JsonValue = None
    """Template of an iteration's output; where not given the output of the last step."""
    max_iterations: int = Field(default=100, ge=1, le=10_000)
    """The hard bound."""
    on_limit: Literal["fail", "stop"] = "fail"
    """The step's outcome at the limit."""


class SignalSpec(Part):
    """The event that a step waits for."""

    name: Name
    """Name of the event."""
    match: Condition | None = None
    """Condition over ``signal.payload`` and the rest of the scope."""
    correlation: JsonValue = None
    """Template of the key by which the event finds the run."""


class WaitStep(Part):
    """Waits for a duration, until a time, or for an event: exactly one of the three."""

    exactly_one = ("for", "until", "signal")

    for_: DurationOrTemplate | None = Field(default=None, alias="for")
    """A duration, or a template that gives one."""
    until: str | None = Field(default=None, min_length=1, max_length=4000)
    """A moment (RFC 3339), or a template that gives one."""
    signal: SignalSpec | None = None
    """The event; its payload is the output."""
    timeout: Duration | None = None
    """How long an event is waited for."""
    on_timeout: OnError = "fail"
    """The step's outcome if the event does not come in time."""


class ApprovalStep(Part):
    """Waits for an approval or a rejection."""

    message: JsonValue = ""
    """Template of the question."""
    role: Role | None = None
    """The role that may answer; operators where not given."""
    expires: Duration = 86_400.0
    """How long is waited; then it counts as rejected."""
    on_reject: OnError = "fail"
    """``continue``: the output says ``approved: false``."""


class ChildStep(Part):
    """A run of another definition; its output is the step's, it is cancelled with its parent."""

    name: Token
    """Workflow, network or agent."""
    version: Selector | None = None
    """Version or alias; the published version where not given. Resolved when this is published."""
    input: JsonValue = None
    """Template of its input."""
    limits: ChildLimitsSpec = ChildLimitsSpec()


class RecipientSpec(Part):
    """Who gets a message: exactly one of the three, each a template."""

    exactly_one = ("run", "correlation", "session")

    run: JsonValue = None
    """Id of a run."""
    correlation: JsonValue = None
    """Key that a run waits for, or is known by."""
    session: JsonValue = None
    """Session whose latest run gets it."""


class SendStep(Part):
    """A message to another run, which waits for it as for an event."""

    to: RecipientSpec
    name: Name
    """Name under which it is waited for."""
    payload: JsonValue = None
    """Template of what it says."""


class EndStep(Part):
    """Ends the run at once."""

    status: Literal["done", "failed"] = "done"
    output: JsonValue = None
    """Template of the run's output."""
    message: JsonValue = ""
    """Template of the error's message, where it fails."""


class UndoSpec(Part):
    """What undoes a step: exactly one of ``agent``, ``tool`` and ``http``."""

    exactly_one = ("agent", "tool", "http")

    id: NodeId | None = None
    """``{step}_undo`` where not given."""
    agent: Token | None = None
    tool: Token | None = None
    http: HttpRequest | None = None
    input: JsonValue = None
    """Template; it sees the step that it undoes."""
    retry: RetrySpec | None = None
    timeout_seconds: float | None = Field(default=None, gt=0, le=86_400)


class StepSpec(Part):
    """One step of a workflow: exactly one of the kinds of work."""

    exactly_one = WORK

    id: NodeId
    """A letter, then up to 39 letters, digits or ``_``; unique in the document ignoring case."""
    agent: Token | None = None
    """Name of an agent, which gets ``input``."""
    tool: Token | None = None
    """Name of a tool, which is called with ``input``."""
    http: HttpRequest | None = None
    """A request over HTTP."""
    transform: JsonValue = None
    """Template of the output; nothing else happens."""
    branch: Annotated[tuple[CaseSpec, ...], Field(min_length=1, max_length=100)] | None = None
    """Cases, of which the first that holds is taken."""
    parallel: ParallelStep | None = None
    """Branches side by side."""
    map: MapStep | None = None
    """Steps for every item of a list."""
    loop: LoopStep | None = None
    """Steps again and again."""
    wait: WaitStep | None = None
    """Waits for time or an event."""
    approval: ApprovalStep | None = None
    """Waits for an approval or a rejection."""
    workflow: ChildStep | None = None
    """A run of another definition."""
    send: SendStep | None = None
    """A message to another run."""
    end: EndStep | None = None
    """Ends the run."""
    input: JsonValue = None
    """Template; where not given, an agent gets the run's input, a tool no arguments."""
    depends_on: tuple[NodeId, ...] | None = None
    """Steps of the same block that must be done before; where not given the one above, ``[]`` for
    none."""
    when: Condition | None = Field(default=None, alias="if")
    """Condition; where it does not hold the step is skipped, and its output is null."""
    retry: RetrySpec | None = None
    """Instead of the agent's or tool's own."""
    timeout_seconds: float | None = Field(default=None, gt=0, le=MAX_DURATION_SECONDS)
    """For one attempt; instead of the agent's or tool's own."""
    on_error: OnError = "fail"
    """The run's outcome if the step fails for good."""
    fallback: JsonValue = None
    """Template of the output where a failed step is continued after."""
    compensate: UndoSpec | None = None
    """Undoes the step if it succeeded and the run fails later."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """The kinds of work that are given."""
        bare = BARE & self.model_fields_set
        return tuple(
            name for name in WORK if name in bare or (name not in BARE and getattr(self, name))
        )

    @property
    def work(self) -> str:
        """The kind of work; empty where there is none."""
        return next(iter(self.chosen), "")


for _model in (BlockSpec, CaseSpec, ParallelStep, MapStep, LoopStep, StepSpec):
    _model.model_rebuild()
