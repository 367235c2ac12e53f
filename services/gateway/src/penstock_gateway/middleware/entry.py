"""The middleware around every request: security headers, the limit of bodies, the caller.

Pure ASGI: nothing here costs a task or a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache, partial
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock import clock
from penstock.contracts.errors import ErrorDetail, PenstockError, RejectedError
from penstock_gateway.core.access import (
    Caller,
    Permit,
    Role,
    bearer_key,
    forbidden,
    key_digest,
    unauthenticated,
    unchecked_caller,
)
from penstock_gateway.documentation import DOCUMENTATION
from penstock_gateway.metrics import RESPONSES_BY_CLASS
from penstock_gateway.middleware.protocol import EXTENSION, SendWhole
from penstock_gateway.raw import (
    ASKED_AGAIN,
    CONTENT_POLICY,
    NOT_STORED,
    SECURITY_HEADERS,
    TRANSPORT_SECURITY,
    Answer,
    lines_of,
)
from penstock_gateway.settings import GatewaySettings, is_loopback

_SAFETY_LINES: Final = lines_of([*SECURITY_HEADERS, NOT_STORED, CONTENT_POLICY])

COMPRESSED_BYTES: Final = 4096
"""From this size on answers are compressed for clients that take it: below, it saves no packet."""
_compressed: Final = partial(GZipMiddleware, minimum_size=COMPRESSED_BYTES, compresslevel=4)

Headers = Mapping[bytes, bytes]
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class BodyTooLargeError(HTTPException):
    """The body is above the limit; an HTTP exception, so that no framework turns it into 400."""

    def __init__(self, limit: int) -> None:
        """Name the limit in bytes."""
        super().__init__(413, f"the body is larger than {limit} bytes")
        self.limit = limit


def too_large(limit: int) -> RejectedError:
    """Return the error of a body above ``limit`` bytes."""
    return RejectedError(
        "body_too_large",
        f"the body is larger than {limit} bytes",
        details=(ErrorDetail(path="body", message="too large", allowed=f"at most {limit} bytes"),),
    )


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """Read a request's body; ``EntryMiddleware`` counts it on its way here.

    Raises:
        RejectedError: ``body_too_large``, by what the client announces.
        BodyTooLargeError: By what it sends.
        ClientDisconnect: The client went away.
    """
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise too_large(limit)
    message = await receive()
    parts: list[bytes] = []
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
        message = await receive()
    raise ClientDisconnect


class EntryMiddleware:
    """Middleware around everything: response headers, the limit of bodies, and a short way in.

    A request for one of the ``shortcuts`` goes straight to its endpoint: matching routes one by
    one and the framework's layers around each cost as much as starting a run does.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        shortcuts: Mapping[tuple[str, str], Endpoint],
        failed: Callable[[PenstockError], Response],
        others_add_headers: bool = False,
        larger: Mapping[str, int] | None = None,
    ) -> None:
        """Wrap ``app``.

        Args:
            app: Everything inside.
            max_body_bytes: Limit of a request's body.
            shortcuts: Endpoints by method and path.
            failed: Answers with an error of a shortcut.
            others_add_headers: Something outside adds headers, so that it has to see answers.
            larger: Other limits, by path.
        """
        self._app = _compressed(app)
        self._limit = max_body_bytes
        self._shortcuts = shortcuts
        self._failed = failed
        self._others_add_headers = others_add_headers
        self._larger = larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Taken out, for it refers to what the scope belongs to: a circle for each request would
        # leave freeing them to the garbage collector.
        whole: SendWhole | None = scope.pop(EXTENSION, None)
        path: str = scope["path"]
        secure = scope.get("scheme") == "https"
        limit, size = self._larger.get(path, self._limit), 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise BodyTooLargeError(limit)
            return message

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
                tagged = any(name == b"etag" for name, _ in headers)
                headers.append(ASKED_AGAIN if tagged else NOT_STORED)
                if path != DOCUMENTATION:
                    headers.append(CONTENT_POLICY)
                if secure:
                    headers.append(TRANSPORT_SECURITY)
                RESPONSES_BY_CLASS[message["status"] // 100].inc()
            await send(message)

        if scope["method"] == "HEAD":
            scope = _as_get(scope)
        endpoint = self._shortcuts.get((scope["method"], path))
        if endpoint is None:
            await self._app(scope, limited, dressed)
            return
        try:
            answer = await self._answer(endpoint, Request(scope, limited))
        except ClientDisconnect:
            return
        if (
            whole is None
            or secure
            or self._others_add_headers
            or not isinstance(answer, Answer)
            or len(answer.body) >= COMPRESSED_BYTES
        ):
            await _compressed(answer)(scope, limited, dressed)
        else:
            RESPONSES_BY_CLASS[answer.status_code // 100].inc()
            await whole(answer.status_code, answer.header_lines() + _SAFETY_LINES, answer.body)

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        try:
            return await endpoint(request)
        except PenstockError as error:
            return self._failed(error)
        except BodyTooLargeError as error:
            return self._failed(too_large(error.limit))


def _as_get(scope: Scope) -> Scope:
    """Return a HEAD request as the GET whose headers it asks for; the server omits the body.

    Without ``Accept`` and ``Prefer``: streams would have no end, and waiting would show nothing.
    """
    headers = [one for one in scope["headers"] if one[0] not in (b"accept", b"prefer")]
    return {**scope, "method": "GET", "headers": headers}


_AUTHORIZATION: Final = b"authorization"


class Authenticator:
    """Identifies the callers of requests by their API keys."""

    def __init__(self, settings: GatewaySettings, keys: Mapping[str, Caller]) -> None:
        """Use the mirrored keys.

        Args:
            settings: Whether keys are needed.
            keys: Callers by the digest of their key.
        """
        self._required = settings.auth_required
        self._keys = keys
        self._developer = unchecked_caller(settings.dev_tenant)
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)

    def caller(self, headers: Headers, role: Role | None = None) -> Caller:
        """Return the caller, who has the role.

        Raises:
            RejectedError: ``unauthenticated``, ``forbidden``, or on a gateway without keys
                ``origin_refused`` for pages of other sites.
        """
        caller = self._caller(headers)
        if role is not None and role not in caller.may:
            raise forbidden(role)
        return caller

    def permit(self, headers: Headers) -> Permit:
        """Return the permission of a long request, whose caller was identified before."""
        authorization = headers.get(_AUTHORIZATION)
        if authorization is None:
            return Permit(None, lambda: True)
        digest = key_digest(bearer_key(authorization))

        def valid() -> bool:
            caller = self._keys.get(digest)
            return caller is not None and not _expired(caller)

        caller = self._keys.get(digest)
        return Permit(digest if caller is None else caller.key_id, valid)

    def _caller(self, headers: Headers) -> Caller:
        authorization = headers.get(_AUTHORIZATION)
        if authorization is None:
            if self._required:
                raise unauthenticated("an API key is needed")
            origin = headers.get(b"origin")
            if origin in self._origins:
                origin = None
            if not _own_site(headers.get(b"host", b"localhost"), origin):
                raise RejectedError(
                    "origin_refused",
                    "a gateway without keys answers pages and names of this machine only",
                )
            return self._developer
        caller = self._keys.get(key_digest(bearer_key(authorization)))
        if caller is None:
            raise unauthenticated("the API key is not valid")
        if _expired(caller):
            raise unauthenticated("the API key has expired")
        return caller


def _expired(caller: Caller) -> bool:
    return caller.expires_at is not None and caller.expires_at <= clock.now()


@lru_cache(maxsize=256)
def _own_site(host: bytes, origin: bytes | None) -> bool:
    """Keep web pages from driving a gateway without keys through their reader's browser.

    Browsers send ``Origin`` with whatever a page of another site posts, and ``Host`` as the page
    knows it, which gives away a name that was rebound to a loopback address.
    """
    text = host.decode("latin-1")
    name, _, port = text.rpartition(":")
    if not is_loopback(name if port.isdigit() else text):
        return False
    return origin is None or origin.partition(b"://")[2] == host
