"""What every request passes: headers for safety, the body's limit, and who is asking.

Pure ASGI: nothing here costs a task or a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock_gateway.answers import SECURITY_HEADERS, TRANSPORT_SECURITY
from penstock_gateway.core.access import (
    Caller,
    bearer_key,
    key_digest,
    unauthenticated,
    unchecked_caller,
)
from penstock_gateway.settings import GatewaySettings, is_loopback

Headers = Mapping[bytes, bytes]


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
    """Read a request's body; ``Entrance`` counts it on its way here.

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


class Entrance:
    """Middleware around everything: response headers and the limit of bodies."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        """Wrap ``app``."""
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        secure = scope.get("scheme") == "https"
        limit, size = self._limit, 0

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
                if secure:
                    headers.append(TRANSPORT_SECURITY)
            await send(message)

        await self._app(scope, limited, dressed)


_AUTHORIZATION: Final = b"authorization"


class Doorkeeper:
    """Tells who is asking."""

    def __init__(self, settings: GatewaySettings, keys: Mapping[str, Caller]) -> None:
        """Use the mirrored keys.

        Args:
            settings: Whether keys are needed.
            keys: Callers by the digest of their key.
        """
        self._required = settings.auth_required
        self._keys = keys
        self._developer = unchecked_caller(settings.dev_tenant)

    def caller(self, headers: Headers) -> Caller:
        """Return the caller.

        Raises:
            RejectedError: ``unauthenticated``, or on a gateway without keys ``origin_refused``
                and ``host_refused`` for pages of other sites.
        """
        authorization = headers.get(_AUTHORIZATION)
        if authorization is None:
            if self._required:
                raise unauthenticated("an API key is needed")
            _refuse_other_sites(headers)
            return self._developer
        caller = self._keys.get(key_digest(bearer_key(authorization)))
        if caller is None:
            raise unauthenticated("the API key is not valid")
        if caller.expires_at is not None and caller.expires_at <= datetime.now(UTC):
            raise unauthenticated("the API key has expired")
        return caller


def _refuse_other_sites(headers: Headers) -> None:
    """Keep web pages from driving a gateway without keys through their reader's browser.

    Browsers send ``Origin`` with whatever a page of another site posts, and ``Host`` as the page
    knows it, which gives away a name that was rebound to a loopback address.
    """
    host = headers.get(b"host", b"localhost").decode("latin-1")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if not is_loopback(name.strip("[]")):
        raise RejectedError("host_refused", "a gateway without keys answers loopback names only")
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != host.encode("latin-1"):
        raise RejectedError("origin_refused", "a gateway without keys serves its own pages only")
