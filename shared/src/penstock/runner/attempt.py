"""One attempt at a step: when it must stop, and its outcome.

An exception of a handler becomes a failed outcome here and nowhere else, `SystemExit` and
`KeyboardInterrupt` included: signals end a process of runners, its handlers do not. A stop request
is distinguished from the cancellation of a process that ends.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

from msgspec import structs
from pydantic_core import ValidationError

from penstock.containment import Containment
from penstock.contracts.errors import (
    ErrorDetail,
    ErrorFamily,
    ErrorInfo,
    PenstockError,
    RejectedError,
)
from penstock.contracts.json import Json
from penstock.contracts.structs import MalformedError, decode, encode
from penstock.masks import Mask
from penstock.telemetry.logs import EventLog

Halt = Literal["deadline", "silent", "stopped"]

MESSAGE_CHARACTERS: Final = 2000
OUTCOME_UNKNOWN: Final = "outcome_unknown"
_UNCERTAIN: Final = frozenset(
    {"step_timeout", "step_expired", "heartbeat_timeout", "handler_error", OUTCOME_UNKNOWN}
)
"""Failures after which it is unknown whether the effect of the handler happened."""
PROGRESS_CHARACTERS: Final = 200

log = EventLog(__name__)


class Attempt:
    """Runs a handler under a deadline; used once, as a context manager around the call.

    An exception of the handler ends up in ``failure``. ``halt`` is the reason why it was stopped,
    if it was. Any other cancellation (the process ends) passes through.
    """

    __slots__ = (
        "_beat_at",
        "_cancelled",
        "_cancelling",
        "_details",
        "_heartbeat_seconds",
        "_pulse",
        "_task",
        "_timer",
        "begun",
        "failure",
        "halt",
        "mask",
        "seconds",
    )

    def __init__(self, seconds: float, heartbeat_seconds: float | None = None) -> None:
        """Prepare the attempt.

        Args:
            seconds: Time until the deadline.
            heartbeat_seconds: Longest time without a sign of progress; ``None``: any.
        """
        self.seconds = seconds
        self.begun = False
        """Whether the handler may have had effects."""
        self.mask: Mask | None = None
        """Hides the step's secrets, if it has any."""
        self._heartbeat_seconds = heartbeat_seconds
        self._beat_at = 0.0
        self._details: Json = None
        self._pulse: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelling = 0
        self._cancelled: asyncio.Event | None = None
        self.failure: ErrorInfo | None = None
        self.halt: Halt | None = None

    @property
    def cancelled(self) -> asyncio.Event:
        """Set as soon as the handler is to stop; its ``is_set`` may be asked from any thread."""
        if self._cancelled is None:
            self._cancelled = asyncio.Event()
            if self.halt is not None:
                self._cancelled.set()
        return self._cancelled

    def stop(self, halt: Halt) -> None:
        """Stop the handler: set the event and cancel its task."""
        if self.halt is None:
            self.halt = halt
            if self._cancelled is not None:
                self._cancelled.set()
            if self._task is not None:
                self._task.cancel()

    def beat(self, details: Json = None) -> None:
        """Show progress; may be called from any thread.

        Args:
            details: How far the work is, for the error should this be the last sign.
        """
        if details is not None:
            self._details = details
        self._beat_at = time.monotonic()

    @property
    def progress(self) -> str:
        """The details of the last heartbeat, without secrets; may be read from any thread."""
        details = self._details
        if details is None:
            return ""
        text = _text_of(details, _as_text)
        return (text if self.mask is None else self.mask.text(text))[:PROGRESS_CHARACTERS]

    @property
    def watched(self) -> bool:
        """Whether signs of progress are expected."""
        return self._heartbeat_seconds is not None

    def watch(self) -> None:
        """Begin to expect signs of progress; on the event loop, inside the ``with`` block."""
        if self._heartbeat_seconds is not None:
            self.beat()
            self._listen(self._heartbeat_seconds)

    def _listen(self, seconds: float) -> None:
        self._pulse = asyncio.get_running_loop().call_later(seconds, self._check, self._beat_at)

    def _check(self, heard_at: float) -> None:
        limit = self._heartbeat_seconds or 0.0
        if self._beat_at == heard_at:
            self.stop("silent")
        else:
            self._listen(max(0.0, self._beat_at + limit - time.monotonic()))

    def _silence(self) -> ErrorInfo:
        shown = _text_of(self._details, repr)
        last = "" if self._details is None else f"; the last one reported {shown}"
        return ErrorInfo(
            code="heartbeat_timeout",
            message=f"no heartbeat for {self._heartbeat_seconds:g} s{last}"[:MESSAGE_CHARACTERS],
            family=ErrorFamily.TRANSIENT,
        )

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._task = task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("an attempt belongs to a task")
        self._cancelling = task.cancelling()
        self._timer = loop.call_later(self.seconds, self.stop, "deadline")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        # Thrown into the coroutine from outside, as its task does not run; not raised by a handler.
        closed = isinstance(error, GeneratorExit) and _running_task() is not task
        if self._timer is not None:
            self._timer.cancel()
        if self._pulse is not None:
            self._pulse.cancel()
        if self.halt is not None and task is not None:
            from_outside = task.uncancel() > self._cancelling
            if from_outside and isinstance(error, asyncio.CancelledError):
                return False
            if self.halt == "silent":
                failure = self._silence()
                self.failure = failure if self.mask is None else self.mask.info(failure)
            else:
                self.failure = _HALTED[self.halt]
            return not closed
        if error is None or closed:
            return False
        if isinstance(error, asyncio.CancelledError) and (
            task is None or task.cancelling() > self._cancelling
        ):
            return False
        self.failure = failure_of(error, self.mask)
        return True


def _running_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None


_HALTED: Final = {
    "deadline": ErrorInfo(
        code="step_timeout",
        message="the step did not end before its deadline",
        family=ErrorFamily.TRANSIENT,
    ),
    "stopped": ErrorInfo(
        code="step_stopped",
        message="the run was stopped",
        family=ErrorFamily.REJECTED,
    ),
}

EXPIRED: Final = ErrorInfo(
    code="step_expired",
    message="the step reached a runner only after its deadline",
    family=ErrorFamily.TRANSIENT,
)


def failure_of(error: BaseException, mask: Mask | None = None) -> ErrorInfo:
    """Return what a handler's exception means; one that is not ours is logged with its stack."""
    if isinstance(error, PenstockError):
        return _recordable(error, mask)
    if isinstance(error, RuntimeError) and isinstance(
        error.__cause__, StopIteration | StopAsyncIteration
    ):
        error = error.__cause__  # neither coroutines nor futures pass it on
    log.error("runner.handler_failed", error=error)
    text = _text_of(error)
    # Masked before it is cut: half a secret would not be found any more.
    text = (text if mask is None else mask.text(text))[:MESSAGE_CHARACTERS]
    name = type(error).__name__
    return ErrorInfo(
        code="handler_error",
        message=f"{name}: {text}" if text else name,
        family=ErrorFamily.TRANSIENT,
    )


def uncertain(failure: ErrorInfo) -> ErrorInfo:
    """Return the failure of an attempt that must not be repeated: is it known what it did?"""
    if failure.code not in _UNCERTAIN:
        return failure
    reason = failure.message
    if failure.code != OUTCOME_UNKNOWN:
        reason = f"{failure.code}: {reason}"
    return ErrorInfo(code=OUTCOME_UNKNOWN, message=reason, details=failure.details)


def _recordable(error: PenstockError, mask: Mask | None) -> ErrorInfo:
    """Return an error of ours as a fact can hold it: its parts come from the handler."""
    # Masked before it is cut, as above.
    text = _text_of(error.message)
    text = text if mask is None else mask.text(text)
    try:
        info = decode(ErrorInfo, encode(structs.replace(error.info(), message=text)))
    except (MalformedError, AttributeError, TypeError):
        info = ErrorInfo(
            code="handler_error",
            message=f"{type(error).__name__}: {text}"[:MESSAGE_CHARACTERS],
            family=error.family,
        )
    return info if mask is None else mask.info(info)


def _as_text(details: object) -> str:
    return details if isinstance(details, str) else json.dumps(details, ensure_ascii=False)


def _text_of(value: object, write: Callable[[object], str] = str) -> str:
    """Return the text of a handler's object, with escapes for what is not Unicode."""
    text = ""
    with Containment(BaseException) as raised:
        text = write(value)
    if raised.error is not None:
        text = f"<its text raised {type(raised.error).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()


def invalid_arguments(name: str, error: ValidationError) -> RejectedError:
    """Return the rejection that a failed validation of a step's input means."""
    details = tuple(
        ErrorDetail(path=".".join(str(part) for part in found["loc"]), message=found["msg"])
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    )
    first = details[0]
    where = f"{first.path}: " if first.path else ""
    return RejectedError("invalid_arguments", f"{name}: {where}{first.message}", details=details)
