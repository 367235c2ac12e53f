"""Agents elsewhere, asked by HTTP, answering by server-sent events.

``POST {endpoint}/invoke`` is answered by ``delta`` events and one ``done`` or ``error``. A stream
that ends without either is a failure that may be tried again.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

from penstock import clock
from penstock.contracts.actions import RouteToAgent
from penstock.contracts.errors import (
    ErrorFamily,
    ErrorInfo,
    RejectedError,
    TransientError,
    error_from,
)
from penstock.contracts.json import Json, JsonObject
from penstock.contracts.structs import plain
from penstock.contracts.usage import Usage
from penstock.sse import SseEvent, SseReader
from penstock.telemetry.tracing import TRACEPARENT
from penstock_agent_runner.core.turn import Turn, last_user_index
from penstock_agent_runner.models import Emit, Request

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 300.0
MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
SHOWN_CHARACTERS: Final = 500
READ_BYTES: Final = 65_536
"""Bytes read of an error response: more than is shown, so that no secret is cut in half."""
TRANSIENT_STATUS: Final = frozenset({408, 425, 429})


class RemoteAgent:
    """Asks an agent over HTTP; one connection pool for all of them."""

    def __init__(
        self, *, allow: Sequence[str] = (), client: httpx.AsyncClient | None = None
    ) -> None:
        """Prepare the caller; httpx is imported on the first turn.

        Args:
            allow: Hosts and networks that may be reached although they are not public.
            client: Used instead of a guarded one.
        """
        self._allow = tuple(allow)
        self._client = client
        self._loading = asyncio.Lock()

    async def answer(self, request: Request, emit: Emit) -> Turn:
        """Answer a turn.

        Raises:
            RejectedError: The agent refuses it, or is not to be reached.
            TransientError: It may work later.
        """
        client = await self._ready()
        import httpx  # noqa: PLC0415 - see `_ready`

        endpoint = request.config.endpoint or ""
        session_id = request.config.session_id or request.run_id
        messages: list[Json] = [plain(message) for message in request.input.messages]
        asked = request.input.messages[last_user_index(request.input.messages)]
        headers = {
            "accept": "text/event-stream",
            "x-session-id": session_id,
            "x-run-id": request.run_id,
            "idempotency-key": request.idempotency_key,
        }
        if request.traceparent is not None:
            headers[TRACEPARENT] = request.traceparent
        body: JsonObject = {
            "session_id": session_id,
            "run_id": request.run_id,
            "input_message": {"role": asked.role, "content": asked.content},
            "messages": messages,
        }
        if request.config.routes:
            body["routes"] = [route.model_dump(mode="json") for route in request.config.routes]
            body["can_respond"] = request.config.can_respond
        try:
            async with client.stream(
                "POST",
                f"{endpoint.rstrip('/')}/invoke",
                json=body,
                headers=headers,
                timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            ) as response:
                if response.status_code >= 300:
                    raise await _refusal(response, request)
                return await _listen(response, emit, request)
        except httpx.TimeoutException as error:
            raise TransientError("agent_timeout", type(error).__name__) from error
        except httpx.TransportError as error:
            raise TransientError(
                "agent_unreachable",
                f"{type(error).__name__}: {request.mask(str(error))[:SHOWN_CHARACTERS]}",
            ) from error
        except httpx.InvalidURL as error:
            raise RejectedError("invalid_agent", f"endpoint: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _ready(self) -> httpx.AsyncClient:
        async with self._loading:
            if self._client is None:
                await asyncio.to_thread(importlib.import_module, "penstock.egress")
                from penstock.egress import guarded_client  # noqa: PLC0415

                self._client = guarded_client(self._allow)
        return self._client


async def _listen(response: httpx.Response, emit: Emit, request: Request) -> Turn:
    text: list[str] = []
    async for name, data in _events(response, request):
        if name == "delta":
            piece = str(data.get("text", ""))
            text.append(piece)
            await emit(piece)
        elif name == "done":
            final = _final(data.get("final_message"), "".join(text))
            return Turn(
                text=final,
                route=_route(data.get("route"), final),
                usage=_usage(data.get("usage")),
                model=_string(data.get("model")),
                output=data.get("output"),
            )
        elif name == "error":
            raise _failure(data)
    raise TransientError("agent_stream_ended", "the agent's stream ended without 'done'")


async def _events(
    response: httpx.Response, request: Request
) -> AsyncIterator[tuple[str, JsonObject]]:
    reader = SseReader()
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise RejectedError(
                "response_too_large", f"the agent sent more than {MAX_RESPONSE_BYTES} bytes"
            )
        for event in reader.feed(chunk):
            yield event.name, _object(event, request)


def _object(event: SseEvent, request: Request) -> JsonObject:
    try:
        value = json.loads(event.data)
    except ValueError as error:
        raise TransientError(
            "agent_answer_invalid",
            f"event {event.name!r} holds no JSON: {request.mask(event.data)[:SHOWN_CHARACTERS]}",
        ) from error
    if not isinstance(value, dict):
        raise TransientError("agent_answer_invalid", f"event {event.name!r} holds no object")
    return value


async def _refusal(response: httpx.Response, request: Request) -> Exception:
    from penstock.egress import retry_after_seconds  # noqa: PLC0415 - see `RemoteAgent._ready`

    status = response.status_code
    shown = bytearray()
    async for piece in response.aiter_bytes():
        shown += piece
        if len(shown) > READ_BYTES:
            break
    text = request.mask(shown[:READ_BYTES].decode("utf-8", "replace"))[:SHOWN_CHARACTERS].strip()
    message = f"the agent answered {status}: {text}".rstrip(": ")
    if status in TRANSIENT_STATUS or status >= 500:
        after = retry_after_seconds(response.headers.get("retry-after"), clock.now())
        return TransientError(f"http_{status}", message, retry_after_seconds=after)
    return RejectedError(f"http_{status}", message)


def _failure(data: JsonObject) -> Exception:
    """Return an ``error`` event as an exception; without a family it may be tried again."""
    family = data.get("family")
    after = data.get("retry_after_seconds")
    return error_from(
        ErrorInfo(
            code=_string(data.get("code")) or "agent_error",
            message=str(data.get("message") or data.get("error") or "the agent failed"),
            family=ErrorFamily.REJECTED if family == "rejected" else ErrorFamily.TRANSIENT,
            retry_after_seconds=float(after) if isinstance(after, int | float) else None,
        )
    )


def _final(message: object, streamed: str) -> str:
    if isinstance(message, dict):
        message = message.get("content")
    return message if isinstance(message, str) else streamed


def _route(value: object, text: str) -> RouteToAgent | None:
    """Return to whom the agent hands the conversation over, if it does.

    Raises:
        TransientError: ``agent_answer_invalid``.
    """
    if value is None:
        return None
    given: JsonObject = value if isinstance(value, dict) else {}
    agent, message = _string(given.get("agent")), given.get("message", "")
    if agent is None or not isinstance(message, str):
        raise TransientError(
            "agent_answer_invalid", "'route' must hold 'agent' and may hold 'message', both text"
        )
    return RouteToAgent(agent=agent, message=message, text=text)


def _usage(value: object) -> Usage:
    """Return what the agent says it used; what it costs is known only if it says so."""
    given: JsonObject = value if isinstance(value, dict) else {}
    cost = given.get("cost_usd")
    return Usage(
        input_tokens=_count(given, "input_tokens", "prompt_tokens"),
        output_tokens=_count(given, "output_tokens", "completion_tokens"),
        cost_usd=float(cost) if isinstance(cost, int | float) else 0.0,
        unknown_price=not isinstance(cost, int | float),
        model_calls=1,
    )


def _count(given: JsonObject, *names: str) -> int:
    for name in names:
        value = given.get(name)
        if isinstance(value, int):
            return value
    return 0


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
