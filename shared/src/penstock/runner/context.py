"""The handler's view of its step: coordinates, input, deadline, progress and text."""

from __future__ import annotations

import asyncio
from datetime import datetime

from msgspec import structs

from penstock import clock
from penstock.contracts import subjects
from penstock.contracts.facts import StepScheduled
from penstock.contracts.ids import idempotency_key
from penstock.contracts.json import Json
from penstock.contracts.subjects import FactSubject
from penstock.contracts.usage import Usage
from penstock.runner.attempt import Attempt
from penstock.runner.deltas import DeltaStream, Requester
from penstock.runner.secrets import Filled


class StepContext:
    """One attempt at one step, as its handler sees it."""

    __slots__ = (
        "_attempt",
        "_bus",
        "_deltas",
        "_loop",
        "_step",
        "_subject",
        "deliveries",
        "model",
        "traceparent",
        "usage",
    )

    def __init__(
        self,
        subject: FactSubject,
        step: StepScheduled,
        attempt: Attempt,
        bus: Requester,
        traceparent: str | None = None,
        *,
        deliveries: int = 1,
    ) -> None:
        """Made by the runner.

        Args:
            subject: Coordinates of the step.
            step: The step itself.
            attempt: Knows when the handler is to stop.
            bus: Takes the pieces of text.
            traceparent: The trace that the step belongs to.
            deliveries: How often the bus has delivered this attempt, this time included.
        """
        self._subject = subject
        self._step = step
        self._attempt = attempt
        self._bus = bus
        self._deltas: DeltaStream | None = None
        self._loop = asyncio.get_running_loop()
        self.traceparent = traceparent
        """W3C trace context, for the requests that the handler makes."""
        self.usage: Usage | None = None
        """What model calls of this step cost; set by the handler, recorded with the result."""
        self.model: str | None = None
        """Which model answered; set by the handler, recorded with the result."""
        self.deliveries = deliveries
        """How often the bus has delivered this attempt, this time included. Above 1 an earlier
        delivery may have had the effect already."""

    @property
    def tenant(self) -> str:
        """Tenant of the run."""
        return self._subject.tenant

    @property
    def run_id(self) -> str:
        """The run."""
        return self._subject.run_id

    @property
    def step_id(self) -> str:
        """The step within the run."""
        return self._subject.step_id

    @property
    def node_id(self) -> str:
        """The node of the plan that the step belongs to."""
        return self._step.node_id

    @property
    def attempt(self) -> int:
        """Which attempt at the step this is, from 1."""
        return self._subject.attempt

    @property
    def name(self) -> str:
        """Name of the agent or tool that is to run."""
        return self._step.name

    @property
    def input(self) -> Json:
        """The step's input as scheduled: a tool's arguments, or an agent's messages."""
        return self._step.input

    @property
    def config(self) -> Json:
        """The definition's settings beyond the input: an agent's model, an HTTP tool's request."""
        return self._step.config

    @property
    def at_most_once(self) -> bool:
        """Whether the step must not be repeated.

        A handler that does not know whether its effect happened raises
        ``TransientError("outcome_unknown", ...)``: an operator then decides.
        """
        return self._step.at_most_once

    @property
    def secrets(self) -> bool:
        """Whether the input or the config hold secrets."""
        return self._attempt.mask is not None

    def mask(self, text: str) -> str:
        """Return ``text`` without the step's secrets, in full or as they are usually escaped.

        What a handler returns, raises or emits is masked anyway; this is for text that it cuts.
        """
        mask = self._attempt.mask
        return text if mask is None else mask.text(text)

    def heartbeat(self, details: Json = None) -> None:
        """Show that the step makes progress; may be called from any thread, as often as one likes.

        A step with ``heartbeat_seconds`` fails if it shows none for so long. Text counts as well.

        Args:
            details: How far the work is; stands in the error should this be the last sign.
        """
        self._attempt.beat(details)

    @property
    def idempotency_key(self) -> str:
        """Names the step's side effect: the same on every attempt and redelivery."""
        return idempotency_key(self._subject.run_id, self._subject.step_id)

    @property
    def deadline(self) -> datetime:
        """When the step is stopped (UTC)."""
        return self._step.expires_at

    @property
    def remaining_seconds(self) -> float:
        """Time until the deadline, never negative."""
        return max(0.0, (self._step.expires_at - clock.now()).total_seconds())

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when the handler is to stop.

        A plain function, which cannot be interrupted, asks ``is_set`` from its thread.
        """
        return self._attempt.cancelled

    @property
    def deltas(self) -> DeltaStream:
        """The pieces of text of this attempt."""
        if self._deltas is None:
            coordinates = self._subject
            self._deltas = DeltaStream(
                self._bus,
                subjects.delta(
                    coordinates.tenant,
                    coordinates.shard,
                    coordinates.run_id,
                    coordinates.step_id,
                    coordinates.attempt,
                ),
                mask=self._attempt.mask,
                on_emit=self._attempt.beat,
            )
        return self._deltas

    @property
    def once_key(self) -> str:
        """Where it is noted that this attempt begins, if it must not be repeated."""
        return subjects.once_key(self._subject.run_id, self._subject.step_id, self._subject.attempt)

    @property
    def result_subject(self) -> str:
        """Where the outcome of this attempt is recorded."""
        tenant, shard, run_id = self._subject[:3]
        prefix = subjects.run_prefix(tenant, shard, run_id)
        return subjects.result(prefix, self._subject.step_id, self._subject.attempt)

    @property
    def emitted(self) -> DeltaStream | None:
        """The same, or ``None`` where no text was ever emitted."""
        return self._deltas

    def fill(self, filled: Filled) -> StepScheduled:
        """Put the step's secrets in their places; done by the runner, before the handler."""
        self._step = structs.replace(self._step, input=filled.input, config=filled.config)
        self._attempt.mask = filled.mask
        return self._step

    async def emit_delta(self, text: str) -> None:
        """Send a piece of text to the followers of the run; pieces travel in batches.

        Raises:
            TransientError: The bus does not take them any more.
        """
        await self.deltas.emit(text)

    def emit_delta_from_thread(self, text: str) -> None:
        """Do the same from a plain function, which runs in a thread; waits until it is noted.

        Raises:
            TransientError: The bus does not take them any more.
        """
        asyncio.run_coroutine_threadsafe(self.emit_delta(text), self._loop).result()
