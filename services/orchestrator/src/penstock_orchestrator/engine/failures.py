"""Ends of runs that the engine cannot decide, whatever their logs hold."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from penstock import clock
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorFamily, ErrorInfo, PenstockError
from penstock.runs.state import RunState, evolve, new_state
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.core.decide import unplanned
from penstock_orchestrator.engine.containment import contained
from penstock_orchestrator.engine.metrics import ENGINE_FAILED
from penstock_orchestrator.engine.publisher import Publisher
from penstock_orchestrator.engine.runs import Slot

log = EventLog(__name__)


async def end_failed(reader: LogReader, publisher: Publisher, slot: Slot, error: Exception) -> None:
    """End a run that cannot be decided, and log why; the slot has its state after that.

    The state is what can be folded of the log. It stays without an invocation if the log has none,
    and nothing is appended to a log that has an end.

    Raises:
        ConflictError: Another engine has decided meanwhile.
        PenstockError: The bus does not answer.
    """
    slot.progress = None
    slot.state = state = await _salvaged(reader, slot)
    digest = hashlib.sha256(f"{slot.run_id}:{state.decisions + 1}".encode())
    error_id = digest.hexdigest()[:12]
    log.error(
        "engine.run_failed",
        error=error,
        error_id=error_id,
        tenant=slot.tenant,
        run_id=slot.run_id,
        seq=state.last_seq,
    )
    if state.invoked is None or state.ended is not None:
        return
    ENGINE_FAILED.inc()
    cause = f" ({error.code})" if isinstance(error, PenstockError) else ""
    info = ErrorInfo(
        code="internal_error",
        message=f"the run cannot be decided{cause}; the log of the orchestrator has the reason "
        f"under error_id {error_id}",
        family=ErrorFamily.INVARIANT,
    )
    await publisher.publish(slot, state, unplanned(state, clock.now(), 0, info))


async def _salvaged(reader: LogReader, slot: Slot) -> RunState:
    """Fold the facts of a run's log that can be folded; all of them count as decisions."""
    state = new_state(slot.tenant, slot.shard, slot.run_id)
    for message in await reader.stored(slot.tenant, slot.shard, slot.run_id):
        with contained() as failed:
            entry = await reader.entry(message)
            state = evolve(state, entry)
        if failed.error is not None:
            log.warning("engine.fact_left_out", error=failed.error, subject=message.subject)
        decision = subjects.parse_fact(message.subject).decision
        if decision > state.decisions:
            state = replace(state, decisions=decision)
    return state
