"""The handler of all agent steps: chooses who answers, and says what it cost."""

from __future__ import annotations

from dataclasses import replace

from penstock.contracts.actions import Action
from penstock.contracts.usage import Usage
from penstock.runner import StepContext
from penstock.telemetry.tracing import exporting, span
from penstock_agent_runner.core.turn import SCRIPTED, AgentConfig, Turn, TurnInput, read_config
from penstock_agent_runner.models import Model, Request


class Agents:
    """Answers turns by script, by a provider's model or by an agent elsewhere."""

    def __init__(self, *, scripted: Model, provider: Model, remote: Model) -> None:
        """Name who answers."""
        self._scripted = scripted
        self._provider = provider
        self._remote = remote

    async def turn(self, ctx: StepContext, value: TurnInput) -> Action:
        """Answer one turn; its usage stands in the step's result.

        Raises:
            PenstockError: Of the family that fits the failure.
        """
        config = read_config(ctx.config)
        request = Request(
            config=config,
            input=value,
            run_id=ctx.run_id,
            attempt=ctx.attempt,
            seconds=ctx.remaining_seconds,
            idempotency_key=ctx.idempotency_key,
            traceparent=ctx.traceparent,
            mask=ctx.mask,
        )
        model = self._model(config)
        if exporting():
            answer = await _traced(model, request, ctx)
        else:
            answer = await model.answer(request, ctx.deltas.emit)
        ctx.usage, ctx.model = answer.usage, answer.model
        return answer.action()

    def _model(self, config: AgentConfig) -> Model:
        if config.endpoint is not None:
            return self._remote
        return self._scripted if config.model.startswith(SCRIPTED) else self._provider


async def _traced(model: Model, request: Request, ctx: StepContext) -> Turn:
    """Answer within a span, by the conventions for generative AI."""
    config = request.config
    provider = "endpoint" if config.endpoint is not None else config.model.partition("/")[0]
    with span(
        f"chat {config.model or ctx.name}",
        kind="client",
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": config.model,
            "gen_ai.agent.name": ctx.name,
        },
    ) as traced:
        answer = await model.answer(
            replace(request, traceparent=traced.traceparent), ctx.deltas.emit
        )
        usage = answer.usage or Usage()
        traced.set(
            gen_ai__response__model=answer.model or config.model,
            gen_ai__usage__input_tokens=usage.input_tokens,
            gen_ai__usage__output_tokens=usage.output_tokens,
        )
    return answer
