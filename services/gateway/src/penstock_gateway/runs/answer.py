"""Answers to pending requests: approvals, results of client tools, resolutions.

The log decides. The id of an answer derives from its request, so the stream stores only one; the
reply to a second one contains the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from penstock import clock
from penstock.contracts.answers import ApprovalAnswer, ResolutionAnswer, ToolAnswer
from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.facts import PendingRequest, SignalReceived
from penstock.contracts.ids import answer_signal_id
from penstock.contracts.structs import convert
from penstock.runs.state import NodeRecordState, RunState, Signal
from penstock.runs.views import ANSWER_KINDS
from penstock_gateway.core.access import Caller
from penstock_gateway.core.node_records import expired
from penstock_gateway.runs.read import Runs
from penstock_gateway.runs.signals import Signals, run_ended

Question = Literal["approval", "client_tool", "resolution"]

_NAMES: Final[dict[Question, tuple[str, str]]] = {
    "approval": ("approval_not_found", "approval"),
    "client_tool": ("tool_call_not_found", "call of a client tool"),
    "resolution": ("resolution_not_found", "unknown outcome"),
}
_NOTHING_ASKED: Final = PendingRequest()


class Answer(NamedTuple):
    """One answer to one pending request."""

    record_id: str
    given: ApprovalAnswer | ToolAnswer | ResolutionAnswer
    digest: str | None = None
    """Digest of the request that the client means; ``None``: any."""
    path: str = ""
    """Path in the request, for errors."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The answer that is in the log, by this request or (``repeated``) an earlier one like it."""

    record_id: str
    fact: SignalReceived
    seq: int
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class _Checked:
    """An answer that may be published, or the recorded one."""

    answer: Answer
    request: PendingRequest
    recorded: Recorded | None = None


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers pending requests of any run."""

    _runs: Runs
    _signals: Signals

    async def answer(
        self, caller: Caller, run_id: str, question: Question, answers: tuple[Answer, ...]
    ) -> list[Recorded]:
        """Publish answers; all are checked before the first is published.

        Args:
            caller: Who answers.
            run_id: The run that asks.
            question: What kind of question it is.
            answers: One for each node record.

        Raises:
            RejectedError: ``run_not_found``, ``run_ended``; ``..._not_found`` where nothing of
                the kind was asked; ``not_waiting`` and ``question_expired`` where it is no longer
                asked; ``digest_mismatch``; ``forbidden``; ``already_decided``.
            TransientError: The log did not answer.
        """
        state = await self._runs.state(caller.tenant, run_id)
        if any(answer.record_id not in state.node_records for answer in answers):
            # The replica may lag behind the one that showed the request.
            state = await self._runs.fresh_state(caller.tenant, run_id)
        checked = [self._check(caller, state, question, answer) for answer in answers]
        return [
            one.recorded or await self._publish(caller, run_id, question, one) for one in checked
        ]

    def _check(
        self, caller: Caller, state: RunState, question: Question, answer: Answer
    ) -> _Checked:
        node_record = find_record(state, question, answer.record_id, answer.path)
        request = node_record.node_record.request or _NOTHING_ASKED
        require_role(caller, request)
        earlier = answer_to(state, question, node_record)
        if answer.digest is not None and request.digest and answer.digest != request.digest:
            raise RejectedError(
                "digest_mismatch",
                "the digest does not match the pending request",
                details=(finding(_at(answer, "digest"), "not asked", request.digest),),
            )
        if earlier is not None:
            recorded = Recorded(answer.record_id, earlier.fact, earlier.seq, repeated=True)
            return _Checked(answer, request, require_same(recorded, answer))
        if state.ended is not None:
            raise run_ended(state.run_id)
        _require_open(node_record, answer)
        return _Checked(answer, request)

    async def _publish(
        self, caller: Caller, run_id: str, question: Question, one: _Checked
    ) -> Recorded:
        kind = ANSWER_KINDS[question]
        record_id = one.answer.record_id
        fact = convert(
            SignalReceived,
            {
                "occurred_at": clock.now(),
                "name": one.request.name,
                "payload": {**one.answer.given.payload(), "digest": one.request.digest},
                "kind": kind,
                "target": record_id,
                "sent_by": caller.key_id,
            },
        )
        signal_id = answer_signal_id(kind, record_id, one.request.digest)
        sent = await self._signals.publish(caller.tenant, run_id, signal_id, fact)
        recorded = Recorded(record_id, sent.fact, sent.seq, sent.repeated)
        return require_same(recorded, one.answer) if sent.repeated else recorded


def find_record(
    state: RunState, question: Question, record_id: str, path: str = ""
) -> NodeRecordState:
    """Return the pending request, open or closed.

    Args:
        state: The run that asks.
        question: What kind of question it is.
        record_id: Id of the node record.
        path: Path in the request, for the error.

    Raises:
        RejectedError: ``approval_not_found``, ``tool_call_not_found``, ``resolution_not_found``.
    """
    node_record = state.node_records.get(record_id)
    # The record of a failed call has the kind of its node; only its answer shows the request.
    if node_record is None or (
        node_record.node_record.kind != question and not _was_asked(state, question, node_record)
    ):
        code, what = _NAMES[question]
        detail = finding(path, "nothing of this id was asked")
        raise RejectedError(
            code,
            f"run {state.run_id} has no {what} {record_id[:64]}",
            details=(detail,) if path else (),
        )
    return node_record


def _was_asked(state: RunState, question: Question, node_record: NodeRecordState) -> bool:
    if node_record.open:
        return False
    return answer_to(state, question, node_record) is not None or expired(
        node_record.node_record, clock.now()
    )


def answer_to(state: RunState, question: Question, node_record: NodeRecordState) -> Signal | None:
    """Return the answer that was given, if one was."""
    kind = ANSWER_KINDS[question]
    record_id = node_record.node_record.record_id
    if node_record.node_record.request is not None:
        return state.signals.get(
            answer_signal_id(kind, record_id, node_record.node_record.request.digest)
        )
    # A closed node record need not repeat the request.
    found = [
        signal
        for signal in state.signals.values()
        if signal.fact.kind == kind and signal.fact.target == record_id
    ]
    return max(found, key=lambda signal: signal.seq, default=None)


def require_role(caller: Caller, request: PendingRequest) -> None:
    """Check that a caller may answer: by the role that is asked for, else as an operator.

    Raises:
        RejectedError: ``forbidden``.
    """
    role = request.role or "operator"
    if role not in caller.may and "admin" not in caller.may:
        raise RejectedError(
            "forbidden",
            f"this needs the role {role}",
            details=(finding("authorization", "role missing", role),),
        )


def require_same(recorded: Recorded, answer: Answer) -> Recorded:
    """Return the recorded answer if the new one is equal to it.

    Raises:
        RejectedError: ``already_decided``, with the recorded answer.
    """
    payload = recorded.fact.payload
    first = payload if isinstance(payload, dict) else {}
    given = answer.given.payload()
    compared = [name for name in given if name not in ("reason", "by")]
    if all(first.get(name) == given[name] for name in compared):
        return recorded
    decided = first.get("decision") or first.get("action") or first.get("status")
    by = first.get("by") or recorded.fact.sent_by or "another caller"
    raise RejectedError(
        "already_decided",
        f"{by} has answered already: {decided}",
        details=(
            finding(
                _at(answer, compared[0]),
                f"decided at {recorded.fact.occurred_at.isoformat()} by {by}",
                str(decided),
            ),
        ),
    )


def _require_open(node_record: NodeRecordState, answer: Answer) -> None:
    """Check that a node record still waits.

    Raises:
        RejectedError: ``question_expired``, ``not_waiting``.
    """
    if expired(node_record.node_record, clock.now()):
        raise RejectedError(
            "question_expired",
            f"{answer.record_id} waited until {node_record.node_record.due_at}, no longer",
        )
    if not node_record.open:
        raise RejectedError("not_waiting", f"the run does not wait for {answer.record_id} any more")


def _at(answer: Answer, name: str) -> str:
    return f"{answer.path}.{name}".strip(".") if answer.path else name
