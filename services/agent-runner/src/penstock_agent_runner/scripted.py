"""Performs scripts: waits, emits the pieces and answers or fails."""

from __future__ import annotations

import asyncio

from penstock_agent_runner.core.script import failure, perform, read_script
from penstock_agent_runner.core.turn import Turn
from penstock_agent_runner.models import Emit, Request


class ScriptedModel:
    """A deterministic model without a network, and named accordingly: ``scripted/…``."""

    async def answer(self, request: Request, emit: Emit) -> Turn:
        """Answer as the agent's script says.

        Raises:
            RejectedError: The script is invalid or has ended.
            PenstockError: The script says to fail.
        """
        config = request.config
        played = perform(
            read_script(config.script),
            config.model,
            request.input.messages,
            config.own_turn if config.own_turn is not None else config.turn,
        )
        error = played.error
        if error is not None and (error.attempts is None or request.attempt <= error.attempts):
            await asyncio.sleep(played.delay_seconds)
            raise failure(error)
        pieces = played.pieces if config.stream else ()
        pause = played.delay_seconds / max(1, len(pieces))
        if pause and not pieces:
            await asyncio.sleep(pause)
        for piece in pieces:
            if pause:
                await asyncio.sleep(pause)
            await emit(piece)
        return played.turn
