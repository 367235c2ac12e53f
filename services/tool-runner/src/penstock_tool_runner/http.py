"""The tools of queue ``http``: one request per call, to an address that was checked.

No retries here: what may work later is a transient failure, which the engine tries again.
Secrets enter at the last moment, and are taken out of whatever comes back.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pydantic_core import from_json

from penstock import clock
from penstock.contracts.errors import RejectedError, TransientError
from penstock.contracts.json import Json
from penstock.masks import Mask
from penstock.runner import StepContext
from penstock_tool_runner.core.request import (
    HttpTool,
    Request,
    build_request,
    map_response,
    read_tool,
)

if TYPE_CHECKING:
    import httpx

SECRET_PREFIX: Final = "PENSTOCK_SECRET_"
MAX_REDIRECTS: Final = 5
SHOWN_CHARACTERS: Final = 500
REDACTED: Final = "[redacted]"
TRANSIENT_STATUS: Final = frozenset({408, 425, 429})
UNCERTAIN_STATUS: Final = frozenset({408, 500, 502, 504})
"""Answers that do not say whether the request was carried out."""

_UNREACHABLE: Final = "http_unreachable"
_HEAVY: Final = ("httpx", "penstock.egress", "penstock_tool_runner.core.arguments")


class HttpTools:
    """Calls HTTP tools; one connection pool for all of them."""

    def __init__(
        self,
        *,
        allow: Sequence[str] = (),
        environment: Mapping[str, str],
        client: httpx.AsyncClient | None = None,
    ) -> None:
        """Prepare the caller; nothing heavy is imported before the first call.

        Args:
            allow: Hosts and networks that may be reached although they are not public.
            environment: Where secrets are found.
            client: Used instead of a guarded one.
        """
        self._allow = tuple(allow)
        self._environment = environment
        self._client = client
        self._loading = asyncio.Lock()

    async def call(self, ctx: StepContext, arguments: Json) -> Json:
        """Check the arguments, send the request, map the response.

        Raises:
            RejectedError: The arguments, the definition, the address or the answer is wrong.
            TransientError: It may work later.
        """
        client = await self._ready()
        from penstock_tool_runner.core.arguments import check_arguments  # noqa: PLC0415

        tool, schema = read_tool(ctx.config)
        given: Json = {} if arguments is None else arguments
        check_arguments(schema, given)
        if not isinstance(given, dict):
            raise RejectedError("invalid_arguments", "the arguments must be an object")
        request = build_request(tool, given)
        secrets = {name: self._secret(item.secret) for name, item in request.secrets.items()}
        headers = {
            "accept": "application/json, */*;q=0.5",
            "accept-encoding": "identity",
            "user-agent": "penstock",
            "idempotency-key": ctx.idempotency_key,
            **{name.lower(): value for name, value in request.headers.items()},
        }
        for name, value in secrets.items():
            headers[name.lower()] = request.secrets[name].prefix + value
        hidden = _Hidden(ctx, secrets.values())
        seconds = min(tool.timeout_seconds, max(0.001, ctx.remaining_seconds))
        try:
            async with asyncio.timeout(seconds):
                status, found, body = await self._exchange(client, tool, request, headers, hidden)
        except TimeoutError as error:
            raise _lost(ctx, "http_timeout", f"no answer within {seconds:g} s") from error
        # Masked after it was parsed: a value may be escaped in any way that the parser undoes.
        parsed = hidden.value(
            _parsed(found.get("content-type", ""), body.decode("utf-8", "replace"))
        )
        if status >= 400:
            raise _failure(ctx, status, found, hidden.text(_as_text(parsed)))
        return map_response(
            tool,
            given,
            status=status,
            headers={name: hidden.text(value) for name, value in found.items()},
            body=parsed,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _ready(self) -> httpx.AsyncClient:
        async with self._loading:
            if self._client is None:
                # In a thread: the imports take some 0.3 s, which other steps should not wait for.
                await asyncio.to_thread(_import_heavy)
                from penstock.egress import guarded_client  # noqa: PLC0415

                self._client = guarded_client(self._allow)
        return self._client

    def _secret(self, name: str) -> str:
        value = self._environment.get(SECRET_PREFIX + name)
        if value is None:
            raise RejectedError(
                "secret_missing", f"the runner has no variable {SECRET_PREFIX}{name}"
            )
        return value

    async def _exchange(
        self,
        client: httpx.AsyncClient,
        tool: HttpTool,
        request: Request,
        headers: dict[str, str],
        hidden: _Hidden,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send the request and follow redirects, each of which is checked like the first."""
        import httpx  # noqa: PLC0415 - see `_ready`

        try:
            outgoing: httpx.Request | None = client.build_request(
                request.method,
                _target(request),
                headers=headers,
                json=request.json_body,
                content=None if request.text is None else request.text.encode(),
            )
            for _ in range(MAX_REDIRECTS + 1):
                if outgoing is None:
                    break
                _require_http(outgoing.url)
                response = await client.send(outgoing, stream=True)
                try:
                    if response.next_request is None:
                        body = await _read(response, tool.max_response_bytes)
                        return response.status_code, dict(response.headers), body
                    outgoing = _redirected(outgoing, response.next_request, hidden)
                finally:
                    await response.aclose()
        except httpx.InvalidURL as error:
            raise RejectedError("invalid_url", f"{_shown(request.url)}: {error}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            # Nothing was sent.
            code = "http_timeout" if isinstance(error, httpx.TimeoutException) else _UNREACHABLE
            raise TransientError(code, hidden.shown(error)) from error
        except httpx.TimeoutException as error:
            raise _lost(hidden.ctx, "http_timeout", f"{type(error).__name__}") from error
        except httpx.TransportError as error:
            raise _lost(hidden.ctx, _UNREACHABLE, hidden.shown(error)) from error
        raise RejectedError("too_many_redirects", f"more than {MAX_REDIRECTS} redirects")


class _Hidden:
    """What must not be seen: the definition's own secrets, and those of the step."""

    def __init__(self, ctx: StepContext, own: Iterable[str]) -> None:
        self.ctx = ctx
        self._own = Mask(own, REDACTED)

    def text(self, text: str) -> str:
        return self.ctx.mask(self._own.text(text))

    def value(self, value: Json) -> Json:
        if isinstance(value, str):
            return self.text(value)
        # The step's own secrets are masked in its result.
        return self._own.value(value)

    def shown(self, error: Exception) -> str:
        return f"{type(error).__name__}: {self.text(str(error))[:SHOWN_CHARACTERS]}"


def _lost(ctx: StepContext, code: str, message: str) -> TransientError:
    """Return the failure of a request that was sent, and may have been carried out."""
    if ctx.at_most_once:
        return TransientError("outcome_unknown", f"{code}: {message}")
    return TransientError(code, message)


def _import_heavy() -> None:
    for name in _HEAVY:
        importlib.import_module(name)


def _target(request: Request) -> httpx.URL:
    import httpx  # noqa: PLC0415 - see `HttpTools._ready`

    url = httpx.URL(request.url)
    return url.copy_merge_params(_by_name(request.query)) if request.query else url


def _by_name(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Group pairs by name, in order."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _require_http(url: httpx.URL) -> None:
    if url.scheme not in ("http", "https") or not url.host:
        raise RejectedError("invalid_url", f"{_shown(str(url))}: not an http or https URL")


def _redirected(before: httpx.Request, after: httpx.Request, hidden: _Hidden) -> httpx.Request:
    """Keep secrets from another origin."""
    old, new = before.url, after.url
    if (old.scheme, old.host, old.port) != (new.scheme, new.host, new.port):
        for name, value in list(after.headers.items()):
            if hidden.text(value) != value:
                after.headers.pop(name, None)
        body = after.read().decode("utf-8", "replace")
        if hidden.text(body) != body:
            raise RejectedError(
                "address_refused",
                f"{_shown(str(new))}: a redirect to another origin would take a secret along",
            )
    return after


async def _read(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit:
            raise RejectedError("response_too_large", f"the response has more than {limit} bytes")
    return bytes(body)


def _failure(ctx: StepContext, status: int, headers: Mapping[str, str], text: str) -> Exception:
    from penstock.egress import retry_after_seconds  # noqa: PLC0415 - see `HttpTools._ready`

    message = f"the server answered {status}: {text[:SHOWN_CHARACTERS].strip()}".rstrip(": ")
    if status in UNCERTAIN_STATUS and ctx.at_most_once:
        return _lost(ctx, f"http_{status}", message)
    if status in TRANSIENT_STATUS or status >= 500:
        return TransientError(
            f"http_{status}",
            message,
            retry_after_seconds=retry_after_seconds(headers.get("retry-after"), clock.now()),
        )
    return RejectedError(f"http_{status}", message)


def _parsed(content_type: str, text: str) -> Json:
    if not text:
        return None
    if "json" in content_type:
        try:
            parsed: Json = from_json(text, allow_inf_nan=False)
        except ValueError:
            return text
        return parsed
    return text


def _as_text(value: Json) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _shown(url: str) -> str:
    """Return a URL without its query, which may hold confidential values."""
    return url.partition("?")[0][:SHOWN_CHARACTERS]
