"""Raw routes: endpoints whose cost matters take the raw request and return finished bytes.

FastAPI documents them like other routes. It does not solve dependencies, validate parameters or
serialize replies for them, which costs more than the work of the gateway itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.contracts.envelope import EnvelopeError, check_text
from penstock.contracts.errors import PenstockError, RejectedError, finding
from penstock.runs.replies import Problem
from penstock_gateway.core.problems import MEDIA_TYPE, PROBLEM, findings, problem_of, retry_after
from penstock_gateway.openapi import IF_NONE_MATCH, NOT_MODIFIED

ModelT = TypeVar("ModelT")
RawHeaders = list[tuple[bytes, bytes]]

SECURITY_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
"""On every answer."""

NOT_STORED: Final = (b"cache-control", b"no-store")
"""On every answer without ``ETag``."""

ASKED_AGAIN: Final = (b"cache-control", b"private, no-cache")
"""On answers with ``ETag``: a client may keep them, and asks each time whether they hold."""

CONTENT_POLICY: Final = (
    b"content-security-policy",
    b"default-src 'none'; frame-ancestors 'none'",
)
"""On every answer but the documentation, which is a page with scripts."""

TRANSPORT_SECURITY: Final = (b"strict-transport-security", b"max-age=31536000")
"""Only over HTTPS, where alone it counts (RFC 6797)."""

_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", MEDIA_TYPE.encode())
_LENGTH: Final = b"content-length"


def lines_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as they go over the wire; their values must hold no line breaks."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class Answer(Response):
    """A finished answer."""

    body: bytes

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        headers: RawHeaders | None = None,
        content_type: tuple[bytes, bytes] = _JSON,
    ) -> None:
        """Take over bytes that are complete.

        Args:
            body: The whole body.
            status: HTTP status.
            headers: Further headers, names in lower case.
            content_type: The header of that name.
        """
        self.body = body
        self.status_code = status
        self.background = None
        self.raw_headers = [content_type, (_LENGTH, b"%d" % len(body))]
        if headers:
            self.raw_headers += headers

    def header_lines(self) -> bytes:
        """Return all headers as they go over the wire."""
        return lines_of(self.raw_headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        await send({"type": "http.response.body", "body": self.body})


def conditional(headers: Mapping[bytes, bytes], answer: Response) -> Response:
    """Give an answer its ``ETag``; return 304 instead to a client that has it already.

    The tag is weak, since it is that of the compressed form as well.
    """
    tag = b'W/"%b"' % sha256(answer.body).hexdigest()[:32].encode()
    known = [one.strip() for one in headers.get(b"if-none-match", b"").split(b",")]
    if b"*" in known or tag in known or tag[2:] in known:
        answer = Response(status_code=304)
    answer.raw_headers.append((b"etag", tag))
    return answer


class ConditionalRoute(APIRoute):
    """A route whose answers to GET have an ``ETag``."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Make a route with the framework's options, and describe what is added to it."""
        if options["methods"] == ["GET"]:
            options["responses"] = {**(options.get("responses") or {}), 304: NOT_MODIFIED}
            options["openapi_extra"] = {"parameters": [IF_NONE_MATCH]}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the framework's handler, with ``conditional`` around it."""
        handler = super().get_route_handler()
        if self.methods != {"GET"}:
            return handler

        async def handle(request: Request) -> Response:
            return conditional(dict(request.scope["headers"]), await handler(request))

        return handle


def problem_answer(found: Problem, *, retry: int | None = None) -> Answer:
    """Return a problem document."""
    headers: RawHeaders = []
    if retry is not None:
        headers.append((b"retry-after", b"%d" % retry))
    if found.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Answer(PROBLEM.dump_json(found), found.status, headers, _PROBLEM)


def error_answer(error: PenstockError) -> Answer:
    """Return the problem document of a ``PenstockError``."""
    return problem_answer(problem_of(error), retry=retry_after(error))


class RawRoute(APIRoute):
    """A route that calls its endpoint with the request alone."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def read(adapter: TypeAdapter[ModelT], body: bytes) -> ModelT:
    """Read a JSON body.

    Raises:
        RejectedError: ``malformed_json``, or ``invalid_request`` with every finding.
    """
    require_envelope(body)
    try:
        return adapter.validate_json(body or b"{}")
    except ValidationError as error:
        raise refused(error) from error


def require_type(content_type: bytes | None, *others: str) -> None:
    """Check that a body is declared as JSON, or as nothing.

    Args:
        content_type: The header of that name; ``None`` if it is absent.
        others: Further media types that are taken.

    Raises:
        RejectedError: ``unsupported_media_type``.
    """
    if content_type is None or content_type == _JSON[1]:
        return
    found = media_type(content_type.decode("latin-1"))
    if not is_json(found) and found not in others:
        allowed = ", ".join((_JSON[1].decode(), *others))
        raise RejectedError(
            "unsupported_media_type",
            "the body is of another media type than the API takes here",
            details=(finding("Content-Type", f"got {found[:80]!r}", allowed),),
        )


def media_type(content_type: str) -> str:
    """Return the media type of a ``Content-Type``: in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json(form: str) -> bool:
    """Return whether a media type is JSON."""
    return form == "application/json" or form.endswith("+json")


def require_envelope(body: bytes, *, at: str = "") -> None:
    """Check the values of a JSON body; ``at`` stands before every path.

    Raises:
        RejectedError: ``invalid_request``: one is too deep, no finite number or no text.
    """
    try:
        check_text(body)
    except EnvelopeError as error:
        raise error.rejected("invalid_request", at=at) from error


def refused(error: ValidationError) -> RejectedError:
    """Return the findings about a body as an error."""
    found = findings(error)
    if any(one["type"] == "json_invalid" for one in error.errors(include_url=False)):
        return RejectedError("malformed_json", "the body is not JSON", details=found)
    return RejectedError(
        "invalid_request", "the body does not have the expected form", details=found
    )
