"""Models of providers, through LiteLLM: imported on first use, with its own retries off.

The engine retries, and frees the runner meanwhile. Keys of the environment go to the providers'
own addresses only: an agent that names an ``api_base`` names its key as well, or sends none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from penstock import clock
from penstock.contracts.errors import (
    THROTTLED,
    ErrorFamily,
    PenstockError,
    RejectedError,
    TransientError,
)
from penstock.contracts.json import Json
from penstock.contracts.models import (
    PROVIDERS,
    WITHOUT_ADDRESS,
    model_faults,
    origin_of,
    parameter_faults,
    provider_name,
)
from penstock.contracts.usage import Usage
from penstock_agent_runner.core.routes import instructions_of, route_tools, split_route
from penstock_agent_runner.core.turn import (
    AgentConfig,
    CallCollector,
    Turn,
    chat_messages,
    chat_tools,
)
from penstock_agent_runner.litellm import ORIGIN, load_litellm
from penstock_agent_runner.models import Emit, Request

SECRET_PREFIX: Final = "PENSTOCK_SECRET_"
NO_KEY: Final = "none"
FREE_PROVIDERS: Final = frozenset({"ollama", "ollama_chat"})
MESSAGE_CHARACTERS: Final = 2000
REDACTED: Final = "[redacted]"

_INTERNAL: Final = ("Traceback (most recent call last)", "This looks like a bug in LiteLLM")
"""What LiteLLM adds to messages, from there to their end: for developers, with paths of files."""

_FAMILIES: Final[tuple[tuple[str, ErrorFamily, str], ...]] = (
    ("RateLimitError", ErrorFamily.TRANSIENT, "model_rate_limited"),
    ("Timeout", ErrorFamily.TRANSIENT, "model_timeout"),
    ("ContextWindowExceededError", ErrorFamily.REJECTED, "context_window_exceeded"),
    ("ContentPolicyViolationError", ErrorFamily.REJECTED, "content_refused"),
    ("AuthenticationError", ErrorFamily.REJECTED, "model_unauthorized"),
    ("PermissionDeniedError", ErrorFamily.REJECTED, "model_forbidden"),
    ("PaymentRequiredError", ErrorFamily.REJECTED, "model_unpaid"),
    ("NotFoundError", ErrorFamily.REJECTED, "model_not_found"),
    ("UnprocessableEntityError", ErrorFamily.REJECTED, "model_request_invalid"),
    ("BadRequestError", ErrorFamily.REJECTED, "model_request_invalid"),
    ("BudgetExceededError", ErrorFamily.REJECTED, "model_budget_exceeded"),
    ("ServiceUnavailableError", ErrorFamily.TRANSIENT, "model_unavailable"),
    ("BadGatewayError", ErrorFamily.TRANSIENT, "model_unavailable"),
    ("InternalServerError", ErrorFamily.TRANSIENT, "model_unavailable"),
    ("APIConnectionError", ErrorFamily.TRANSIENT, "model_unreachable"),
    ("APIResponseValidationError", ErrorFamily.TRANSIENT, "model_answer_invalid"),
    ("APIError", ErrorFamily.TRANSIENT, "model_unavailable"),
)
"""LiteLLM's exceptions, subclasses first: what each means to the engine."""

Options = dict[str, Any]
"""Keyword arguments of LiteLLM's ``acompletion``: its own, and what providers take beyond those."""


class ProviderModel:
    """Asks a provider's model."""

    def __init__(self, *, environment: Mapping[str, str], allow: Sequence[str] = ()) -> None:
        """Prepare the model; nothing is imported before the first turn.

        Args:
            environment: Where keys are found: those of providers, and secrets of agents.
            allow: Hosts and networks that may be reached although they are not public.
        """
        self._environment = environment
        self._allow = tuple(allow)
        self._litellm: Any = None
        self._loading = asyncio.Lock()

    async def answer(self, request: Request, emit: Emit) -> Turn:
        """Answer a turn.

        Raises:
            RejectedError: The provider refuses the request as such.
            TransientError: It may work later; carries the provider's ``Retry-After``.
        """
        options = self._options(request)
        litellm = await self._loaded()
        base = options.get("api_base")
        origin = ORIGIN.set(None if base is None else origin_of(base))
        try:
            return await _Conversation(litellm, request, emit).run(options)
        except litellm.exceptions.openai.OpenAIError as error:
            refusal = _refusal(error)
            if refusal is not None:
                raise refusal from error
            text = _shown(request.mask(str(error)), options.get("api_key"))
            raise _mapped(litellm, error, text) from error
        finally:
            ORIGIN.reset(origin)

    async def _loaded(self) -> Any:
        async with self._loading:
            if self._litellm is None:
                # In a thread: the import takes seconds, and other steps continue meanwhile.
                self._litellm = await asyncio.to_thread(load_litellm, self._allow)
        return self._litellm

    def _options(self, request: Request) -> Options:
        config = request.config
        _check(config)
        self._require_address(config)
        options: Options = dict(config.parameters)
        options["api_key"] = self._key(config)
        routes = route_tools(config.routes)
        if config.tools or routes:
            named = {tool.name for tool in routes}
            own = tuple(tool for tool in config.tools if tool.name not in named)
            options["tools"] = chat_tools((*own, *routes))
            # Else it imports its MCP gateway, which needs a package that it does not depend on.
            options["_skip_mcp_handler"] = True
        options |= {
            "model": config.model,
            "messages": chat_messages(instructions_of(config), request.input.messages),
            "timeout": max(1.0, request.seconds),
            "num_retries": 0,
            "max_retries": 0,
            # Else it drops the line above for some providers, whose client then retries twice.
            "allowed_openai_params": ["max_retries"],
            "stream": config.stream,
        }
        if config.stream:
            options["stream_options"] = {"include_usage": True}
        return options

    def _require_address(self, config: AgentConfig) -> None:
        """Refuse a model without an address where LiteLLM would take that of OpenAI.

        Raises:
            RejectedError: ``invalid_agent``.
        """
        provider = provider_name(config.model)
        variable = f"{provider.upper()}_API_BASE"
        known = "api_base" in config.parameters or self._environment.get(variable)
        if provider in WITHOUT_ADDRESS and not known:
            raise RejectedError(
                "invalid_agent",
                f"{provider} has no address: set `parameters: {{api_base: URL}}`, or {variable} "
                "for the agent-runner",
            )

    def _key(self, config: AgentConfig) -> str | None:
        """Return the key of a turn: the agent's own, or the provider's for its own address.

        Raises:
            RejectedError: ``secret_missing`` or ``model_key_missing``.
        """
        reference = config.parameters.get("api_key")
        if isinstance(reference, dict):
            return self._secret(reference.get("secret"))
        names = PROVIDERS[provider_name(config.model)]
        if "api_base" in config.parameters:
            return NO_KEY
        for name in names:
            if value := self._environment.get(name):
                return value
        if not names:
            return None
        raise RejectedError(
            "model_key_missing",
            f"the agent-runner has no variable {' or '.join(names)}; another key is given by "
            "`parameters: {api_key: {secret: NAME}}`",
        )

    def _secret(self, secret: Json) -> str:
        name = f"{SECRET_PREFIX}{secret}"
        value = self._environment.get(name)
        if not value:
            raise RejectedError("secret_missing", f"the runner has no variable {name}")
        return value


def _check(config: AgentConfig) -> None:
    """Check what the registry has checked: plans may come from elsewhere.

    Raises:
        RejectedError: ``invalid_agent``, with the findings.
    """
    details = (
        *model_faults(config.model, "model"),
        *parameter_faults(config.model, config.parameters, "parameters"),
    )
    if details:
        text = "; ".join(f"{detail.path} {detail.message}" for detail in details)
        raise RejectedError("invalid_agent", text[:MESSAGE_CHARACTERS], details=details)


def _refusal(error: BaseException) -> RejectedError | None:
    """Return the refusal of an address that LiteLLM has wrapped in its own errors."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RejectedError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


class _Conversation:
    """One request and its outcome."""

    def __init__(self, litellm: Any, request: Request, emit: Emit) -> None:
        self._litellm = litellm
        self._request = request
        self._emit = emit
        self._text: list[str] = []
        self._calls = CallCollector()
        self._usage: Any = None
        self._model: str | None = None
        self._finish: str | None = None

    async def run(self, options: Options) -> Turn:
        response = await self._litellm.acompletion(**options)
        if self._request.config.stream:
            async for chunk in response:
                await self._add(chunk, streamed=True)
        else:
            await self._add(response, streamed=False)
        if self._finish == "content_filter":
            raise RejectedError("content_refused", "the provider's filter withheld the answer")
        text = "".join(self._text)
        calls = self._calls.calls()
        if self._finish is None and not text and not calls:
            raise TransientError("model_answer_invalid", "the model's answer was empty")
        usage = await self._cost(options)
        calls, route = split_route(self._request.config, calls, text)
        return Turn(text=text, calls=calls, usage=usage, model=self._model, route=route)

    async def _add(self, part: Any, *, streamed: bool) -> None:
        self._model = getattr(part, "model", None) or self._model
        usage = getattr(part, "usage", None)
        if usage is not None:
            self._usage = usage
        for choice in part.choices[:1]:
            self._finish = choice.finish_reason or self._finish
            message = choice.delta if streamed else choice.message
            if message is None:
                continue
            if message.content:
                self._text.append(message.content)
                if streamed:
                    await self._emit(message.content)
            for position, call in enumerate(message.tool_calls or ()):
                index = getattr(call, "index", None)
                self._calls.add(
                    position if index is None else index,
                    call_id=call.id,
                    name=call.function.name,
                    arguments=call.function.arguments,
                )

    async def _cost(self, options: Options) -> Usage:
        usage = self._usage
        if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
            read, written = await asyncio.to_thread(self._count, options)
        else:
            read, written = int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)
        price = self._price(read, written)
        return Usage(
            input_tokens=read,
            output_tokens=written,
            cost_usd=price or 0.0,
            unknown_price=price is None,
            model_calls=1,
        )

    def _count(self, options: Options) -> tuple[int, int]:
        """Count tokens ourselves, because the provider did not say."""
        model = self._request.config.model
        read = self._litellm.token_counter(
            model=model, messages=options["messages"], tools=options.get("tools")
        )
        text = "".join(self._text) + self._calls.raw()
        return int(read), int(self._litellm.token_counter(model=model, text=text) if text else 0)

    def _price(self, read: int, written: int) -> float | None:
        """Return the price in USD; ``None`` where it is not known, which is not the same as 0."""
        model = self._request.config.model
        if model.partition("/")[0] in FREE_PROVIDERS:
            return 0.0
        try:
            costs = self._litellm.cost_per_token(
                model=model,
                prompt_tokens=read,
                completion_tokens=written,
                usage_object=self._usage,
            )
        except self._litellm.exceptions.ModelNotMappedError:
            return None
        return float(sum(costs))


def _shown(text: str, key: object) -> str:
    """Return a provider's message without the key that it may repeat, and without tracebacks."""
    for begin in _INTERNAL:
        text = text.partition(begin)[0]
    text = text.rstrip()
    if isinstance(key, str) and key and key != NO_KEY:
        text = text.replace(key, REDACTED)
    return text[:MESSAGE_CHARACTERS]


def _mapped(litellm: Any, error: Exception, text: str) -> PenstockError:
    """Return what a provider's error means, by the table."""
    for name, family, code in _FAMILIES:
        kind = getattr(litellm.exceptions, name, None)
        if kind is not None and isinstance(error, kind):
            if family is ErrorFamily.REJECTED:
                return RejectedError(code, text)
            after = _retry_after(error)
            # Where the provider says for how long, all runners leave it alone, and it is no try.
            throttled = code == "model_rate_limited" and after is not None
            return TransientError(THROTTLED if throttled else code, text, retry_after_seconds=after)
    return TransientError("model_error", text)


def _retry_after(error: Exception) -> float | None:
    from penstock.egress import retry_after_seconds  # noqa: PLC0415 - httpx is loaded by now

    response = getattr(error, "response", None)
    for headers in (
        getattr(error, "litellm_response_headers", None),
        getattr(response, "headers", None),
        getattr(error, "headers", None),
    ):
        value = headers.get("retry-after") if headers else None
        if value is not None:
            return retry_after_seconds(str(value), clock.now())
    return None
