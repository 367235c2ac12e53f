"""The publisher: stores decisions in the log, and makes their effects.

A decision is one atomic batch. Its first message carries the fence: the log refuses it if another
engine has stored a decision with the same number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC
from typing import Final

from penstock.bus.connection import Bus
from penstock.bus.reader import TRACE_HEADER
from penstock.bus.writer import LogWriter, Record
from penstock.contracts import subjects
from penstock.contracts.facts import StepKind, StepScheduled, fact_bytes
from penstock.contracts.messages import TimerDue
from penstock.contracts.structs import encode
from penstock.contracts.subjects import FactSubject
from penstock.failpoints import reach
from penstock.runs.state import Entry, RunState, evolve, new_state
from penstock_orchestrator.core.decisions import Decided, Output, Repair, Timer
from penstock_orchestrator.engine.effects import Effects, stop_body
from penstock_orchestrator.engine.metrics import ENGINE_DECISIONS
from penstock_orchestrator.engine.runs import Slot

_ENGINE_STEP: Final = f"step.{StepKind.RUN.value}."


class Publisher:
    """Writes to the logs of an engine's runs; used with the lock of the run's slot held."""

    def __init__(self, bus: Bus, writer: LogWriter, effects: Effects) -> None:
        """Use the engine's connection, writer and effects."""
        self._bus = bus
        self._writer = writer
        self._effects = effects

    async def publish(self, slot: Slot, state: RunState, decided: Decided) -> None:
        """Store a decision, fold it into the slot's state, and make its effects.

        Raises:
            ConflictError: Another engine has stored a decision with this number.
            PenstockError: The bus does not answer.
        """
        prefix, number, headers = slot.prefix, decided.number, trace_headers(slot)
        fence = subjects.fence(prefix, number)
        outputs = decided.outputs
        first = Record(
            subjects.out(prefix, number, outputs[0].suffix),
            fact_bytes(outputs[0].fact),
            fence,
            headers,
        )
        if len(outputs) == 1:
            seqs = [
                await self._writer.append(first.subject, first.body, fence=fence, headers=headers)
            ]
        else:
            others = [
                Record(
                    subjects.out(prefix, number, output.suffix),
                    fact_bytes(output.fact),
                    None,
                    headers,
                )
                for output in outputs[1:]
            ]
            seqs = await self._writer.append_all([first, *others])
        ENGINE_DECISIONS.inc()
        reach("engine.decision_stored")
        for output, seq in zip(outputs, seqs, strict=True):
            self._apply(slot, number, output, seq)
        if decided.timers:
            await self.set_timers(slot, decided.timers)
            reach("engine.timers_set")
        if decided.node_records:
            await self._effects.index_pending(slot, state, decided.node_records)
            reach("engine.pending_indexed")
        if decided.stop or decided.stops:
            stop = subjects.stop(slot.tenant, slot.shard, slot.run_id)
            body = b"" if decided.stop else stop_body(decided.stops)
            self._bus.nc.publish_now(stop, "", body)
            if decided.stops:
                await self._effects.cancel_child_runs(slot, decided.stops)
        for output in outputs:
            if output.suffix.startswith(_ENGINE_STEP):
                await self._start_step(slot, output)

    async def _start_step(self, slot: Slot, output: Output) -> None:
        if isinstance(output.fact, StepScheduled):
            _, queue, step_id, attempt = subjects.parse_suffix(output.suffix)
            await self._effects.start_step(slot, queue, step_id, attempt, output.fact)
            reach("engine.step_performed")

    def _apply(self, slot: Slot, number: int, output: Output, seq: int) -> None:
        state = slot.state or new_state(slot.tenant, slot.shard, slot.run_id)
        slot.state = evolve(state, Entry(seq, _subject_of(slot, number, output), output.fact))

    async def republish(self, slot: Slot, missing: Repair) -> None:
        """Append the messages of an earlier decision that its manifest names and the log lacks.

        Raises:
            ConflictError: The log has one of them by now.
            PenstockError: The bus does not answer.
        """
        for output in missing.outputs:
            subject = subjects.out(slot.prefix, missing.number, output.suffix)
            seq = await self._writer.append(
                subject, fact_bytes(output.fact), headers=trace_headers(slot)
            )
            self._apply(slot, missing.number, output, seq)

    async def set_timers(self, slot: Slot, timers: Sequence[Timer]) -> None:
        """Schedule timer messages; one that exists already is replaced.

        Raises:
            PenstockError: The bus does not answer.
        """
        await asyncio.gather(*(self._set_timer(slot, timer) for timer in timers))

    async def _set_timer(self, slot: Slot, timer: Timer) -> None:
        at = timer.due_at.astimezone(UTC).isoformat(timespec="milliseconds")
        coordinates = (slot.tenant, slot.shard, slot.run_id, timer.timer_id)
        await self._writer.append(
            subjects.timer_set(*coordinates),
            encode(TimerDue(due_at=timer.due_at)),
            headers={
                "Nats-Schedule": "@at " + at.replace("+00:00", "Z"),
                "Nats-Schedule-Target": subjects.timer_due(*coordinates),
                "Nats-Schedule-TTL": "1h",
            },
        )


def trace_headers(slot: Slot) -> dict[str, str] | None:
    """Return the headers that continue the trace of a run."""
    return {TRACE_HEADER: slot.traceparent} if slot.traceparent is not None else None


def _subject_of(slot: Slot, number: int, output: Output) -> FactSubject:
    if output.suffix == subjects.END_SUFFIX:
        return FactSubject(slot.tenant, slot.shard, slot.run_id, "end", number)
    if output.suffix == subjects.STATE_SUFFIX:
        return FactSubject(slot.tenant, slot.shard, slot.run_id, "state", number)
    kind, queue, step_id, attempt = subjects.parse_suffix(output.suffix)
    return FactSubject(
        slot.tenant, slot.shard, slot.run_id, "step", number, kind, queue, step_id, attempt
    )
