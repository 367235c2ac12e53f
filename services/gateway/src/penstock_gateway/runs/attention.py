"""Waiting until a run has ended, or needs its client to execute a tool."""

from __future__ import annotations

import asyncio
from typing import Final

from nats.aio.subscription import Subscription

from penstock.bus.claims import is_claim
from penstock.bus.connection import Bus
from penstock.contracts import subjects
from penstock.contracts.ids import shard_of
from penstock.runs.state import NodeRecordState, RunState
from penstock.runs.views import awaited
from penstock_gateway.runs.ends import EndWait, EndWatch, sequence_of
from penstock_gateway.runs.plans import Plans
from penstock_gateway.runs.read import Runs

_CLIENT_TOOL: Final = b'"client_tool"'
_SHORTEST_SECONDS: Final = 0.001


def open_calls(state: RunState) -> tuple[NodeRecordState, ...]:
    """Return the calls of client tools that a run waits for and nobody has answered."""
    return tuple(
        node_record
        for node_record in awaited(state)
        if node_record.node_record.kind == "client_tool"
    )


class CallWatch:
    """Wakes a wait when its run asks its client for something."""

    def __init__(self, bus: Bus, subject: str) -> None:
        """Prepare; made by ``Attention.watch``."""
        self._bus = bus
        self._subject = subject
        self._subscription: Subscription | None = None
        self.wait: EndWait | None = None
        self.seq = 0
        """Sequence of the latest fact that may have asked."""

    async def start(self) -> None:
        """Listen until ``stop``."""
        self._subscription = await self._bus.nc.subscribe_direct(self._subject, self._on_fact)
        self._bus.on_reconnect.append(self._wake)

    async def stop(self) -> None:
        """Listen no longer."""
        if self._subscription is not None:
            self._bus.on_reconnect.remove(self._wake)
            await self._bus.nc.unsubscribe_direct(self._subscription)
            self._subscription = None

    def _on_fact(self, _subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        if _CLIENT_TOOL in body or is_claim(body):
            self.seq = max(self.seq, sequence_of(headers))
            self._wake()

    def _wake(self) -> None:
        if self.wait is not None:
            self.wait.resolve(None)


class Attention:
    """Waits of any request for any run."""

    def __init__(self, bus: Bus, ends: EndWatch, runs: Runs, plans: Plans, shards: int) -> None:
        """Use the process's parts.

        Args:
            bus: The connection.
            ends: Tells of ends.
            runs: Reads the runs.
            plans: Knows which plans have client tools.
            shards: Number of shards of the installation.
        """
        self._bus = bus
        self._ends = ends
        self._runs = runs
        self._plans = plans
        self._shards = shards

    async def watch(self, tenant: str, run_id: str, plan_digest: str) -> CallWatch | None:
        """Return a watch that has begun, ``None`` where the plan has no client tools; ``stop`` it.

        Raises:
            TransientError: The bus did not answer.
        """
        if not (await self._plans.gist(plan_digest)).client_tools:
            return None
        prefix = subjects.run_prefix(tenant, shard_of(run_id, self._shards), run_id)
        watch = CallWatch(self._bus, subjects.live(subjects.decisions_filter(prefix)))
        await watch.start()
        return watch

    async def settled(
        self, tenant: str, run_id: str, seconds: float, watch: CallWatch | None = None
    ) -> RunState:
        """Return a run once it has ended or needs its client, or as it is when time is up.

        Args:
            tenant: The caller's tenant.
            run_id: The run.
            seconds: How long to wait.
            watch: One that has begun; otherwise one is made, where the plan needs it.

        Raises:
            RejectedError: ``run_not_found``.
            TransientError: The log did not answer.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        own = None
        try:
            while True:
                left = until - loop.time()
                # Begun before the log is read: what happens in between is not missed.
                wait = self._ends.wait(tenant, run_id, max(left, _SHORTEST_SECONDS))
                if watch is not None:
                    watch.wait = wait
                try:
                    seq = watch.seq if watch is not None else 0
                    state = await self._runs.state(tenant, run_id, at_least_seq=seq)
                    over = state.ended is not None or left <= _SHORTEST_SECONDS
                    if over or self._ends.draining or open_calls(state):
                        return state
                    if watch is None and state.invoked is not None:
                        watch = own = await self.watch(tenant, run_id, state.invoked.plan_digest)
                        if own is not None:
                            continue
                    await wait.end()
                finally:
                    wait.close()
        finally:
            if own is not None:
                await own.stop()
