"""Blows from a seed, and how long it takes until what was hit does its work again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import httpx

from tests.chaos.crowd import GONE, Crowd
from tests.chaos.rig import ACK_WAIT_SECONDS, LEASE_SECONDS, SHARDS, Rig
from tests.chaos.verdict import Havoc, Ledger, Span
from tests.chaos.witness import Seen, Witness
from tests.support.waiting import eventually

STOPS_SECONDS = (1.0, 8.0)
UNDER_WAY_SECONDS = 0.1
"""What a process sent before it was hit is stored within so long."""
PATIENCE_SECONDS = 90.0
RUNNERS = ("agent-runner", "tool-runner", "ledger")

Kind = Literal["kill", "stop", "isolate"]


@dataclass(frozen=True)
class Blow:
    """What is done to whom."""

    target: str
    kind: Kind
    seconds: float = 0.0
    """How long it is stopped."""
    pause_seconds: float = 0.0
    """From recovery to the next blow."""

    def __str__(self) -> str:
        how = {
            "kill": "kill -9",
            "stop": f"stop for {self.seconds:.1f} s:",
            "isolate": f"isolate for {self.seconds:.1f} s:",
        }
        return f"{how[self.kind]} {self.target}"


@dataclass
class Struck:
    """A blow that was dealt."""

    blow: Blow
    at: float
    """Unix time."""
    pid: int
    counted_from: float
    """From when recovery counts: the blow, or the end of a stop that nobody could make up for."""
    recovered_at: float = 0.0
    in_hand: int = 0
    """Steps that the process had begun and not done."""
    in_hand_seconds: float = 0.0
    """From the blow to the last one's outcome."""

    @property
    def seconds(self) -> float:
        """How long recovery took."""
        return max(0.0, self.recovered_at - self.counted_from)


def plan_blows(chance: random.Random, targets: Sequence[str], count: int) -> list[Blow]:
    """Draw blows: each target is hit once if there are enough, the others are drawn freely.

    Two are always among them: a runner is stopped for longer than the bus waits, so that effects
    are repeated, and the gateway is killed, so that followers are cut off.
    """
    order = list(targets)
    chance.shuffle(order)
    drawn = (order + [chance.choice(order) for _ in range(count)])[: count - 2]
    blows: list[Blow] = []
    for target in drawn:
        kind: Kind = "kill" if chance.random() < 0.6 else "stop"
        seconds = round(chance.uniform(*STOPS_SECONDS), 1)
        pause = round(chance.uniform(0.2, 2.0), 1)
        blows.append(Blow(target, kind, seconds if kind == "stop" else 0.0, pause))
    blows.append(Blow("ledger-1", "stop", 1.5 * ACK_WAIT_SECONDS, 1.0))
    blows.append(Blow("gateway", "kill", 0.0, 1.0))
    chance.shuffle(blows)
    return blows


class Striker:
    """Deals blows to the processes of a rig and waits until their work moves again."""

    def __init__(
        self,
        rig: Rig,
        witness: Witness,
        crowd: Crowd,
        client: httpx.AsyncClient,
        archive_position: Callable[[], Awaitable[int]],
    ) -> None:
        """Prepare to strike.

        Args:
            rig: What is hit.
            witness: Who sees the log move.
            crowd: Who starts runs meanwhile.
            client: Of the gateway.
            archive_position: Tells the sequence that the archive has reached; -1 if it does not
                answer.
        """
        self._rig = rig
        self._witness = witness
        self._crowd = crowd
        self._client = client
        self._archive_position = archive_position
        self.havoc = Havoc()
        self.struck: list[Struck] = []

    async def strike(self, blow: Blow) -> Struck:
        """Deal a blow and wait for recovery.

        Raises:
            AssertionError: It did not recover in 90 seconds.
        """
        await self._crowd.check()
        announce(blow)
        pid = self._rig.stack.pid(blow.target)
        position = await self._archive_position()
        at = time.time()
        struck = Struck(blow, at, pid, at)
        if blow.kind == "kill":
            os.kill(pid, signal.SIGKILL)
            await eventually(
                lambda: self._rig.alive_as_another(blow.target, pid), within=PATIENCE_SECONDS
            )
        else:
            await self._stop(struck)
        self._note(struck)
        await self._recovery(struck, position)
        if blow.target == "nats-server":
            self.havoc.bus.append(Span(at, struck.recovered_at))
        self.struck.append(struck)
        await asyncio.sleep(blow.pause_seconds)
        return struck

    async def _stop(self, struck: Struck) -> None:
        os.kill(struck.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(struck.blow.seconds)
        finally:
            os.kill(struck.pid, signal.SIGCONT)
        if not self._others_take_over(struck.blow):
            struck.counted_from = time.time()

    def _others_take_over(self, blow: Blow) -> bool:
        """Tell whether a replica does the work of a stopped process before that goes on."""
        return _role(blow.target) == "engine" and blow.seconds > LEASE_SECONDS

    def _note(self, struck: Struck) -> None:
        if _role(struck.blow.target) != "ledger":
            return
        if struck.blow.kind == "kill":
            self.havoc.killed(struck.pid, struck.at)
        else:
            self.havoc.stopped(struck.pid, struck.at)

    async def _recovery(self, struck: Struck, position: int) -> None:
        role = _role(struck.blow.target)
        if role == "registry":
            struck.recovered_at = await self._answered("/v1/agents?limit=1")
            return
        if role == "projector":

            async def archived() -> bool:
                return await self._archive_position() > position

            await eventually(archived, within=PATIENCE_SECONDS, every=0.1)
            struck.recovered_at = time.time()
            return
        moved = self._moved(struck, role)
        recovered_at = await eventually(moved, within=PATIENCE_SECONDS, every=0.1)
        assert recovered_at is not None
        struck.recovered_at = recovered_at

    def _result_since(self, since: float, name: str) -> float | None:
        # A successor that finds no leader in the cluster ends, too: the process of now counts.
        pid = self._rig.stack.state.processes[name].pid
        return self._witness.first(since, lambda seen: seen.event == "result" and seen.pid == pid)

    def _moved(self, struck: Struck, role: str) -> Callable[[], float | None]:
        since = struck.counted_from + UNDER_WAY_SECONDS
        if role == "gateway":
            return lambda: self._crowd.answered_since(since)
        if role in RUNNERS:
            return lambda: self._result_since(since, struck.blow.target)
        if role == "engine":
            return lambda: self.every_shard_since(since)
        return lambda: self.everything_since(since)

    def every_shard_since(self, moment: float) -> float | None:
        """Return when the last shard had a decision after ``moment``; ``None`` if one has none."""
        first: dict[int, float] = {}
        for seen in self._witness.since(moment):
            if seen.event == "out" and seen.shard not in first:
                first[seen.shard] = seen.at
                if len(first) == SHARDS:
                    return seen.at
        return None

    def everything_since(self, moment: float) -> float | None:
        """Return when a run was accepted, a result stated and a decision made since then."""
        events = ("invoke", "result", "out")

        def of(event: str) -> float | None:
            return self._witness.first(moment, lambda seen: seen.event == event)

        firsts = [first for event in events if (first := of(event)) is not None]
        return max(firsts) if len(firsts) == len(events) else None

    async def _answered(self, path: str) -> float:
        async def answers() -> bool:
            try:
                return (await self._client.get(path)).status_code == 200
            except GONE:
                return False

        await eventually(answers, within=PATIENCE_SECONDS, every=0.1)
        return time.time()


def announce(blow: Blow) -> None:
    """Say what is done now: after a failure it is known what came before it."""
    now = time.strftime("%H:%M:%S")
    print(f"{now} {blow}", flush=True)  # noqa: T201 - see above


def _role(target: str) -> str:
    return target.rstrip("-12")


def settle_hands(struck: Sequence[Struck], ledger: Ledger, facts: Sequence[Seen]) -> None:
    """Work out, for the runners that tell it, when the steps they had in hand were done."""
    outcomes: dict[str, float] = {}
    for seen in facts:
        if seen.event == "result":
            outcomes[f"{seen.run_id}:{seen.step_id}"] = seen.at
    for blow in struck:
        hand = [
            outcomes[begun.key]
            for begun in ledger.begins
            if begun.pid == blow.pid and begun.began_at <= blow.at < begun.at
        ]
        if hand:
            blow.in_hand = len(hand)
            blow.in_hand_seconds = max(hand) - blow.at
