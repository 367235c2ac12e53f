"""Every error as a problem document, whatever raised it."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.status import HTTP_405_METHOD_NOT_ALLOWED

from penstock.contracts.errors import ErrorFamily, PenstockError
from penstock.telemetry.logs import EventLog
from penstock_gateway.core.problems import CODE_OF_STATUS, findings_of, problem
from penstock_gateway.middleware.entry import BodyTooLargeError, too_large
from penstock_gateway.raw import error_answer, problem_answer

log = EventLog(__name__)


def failed(error: PenstockError) -> Response:
    """Reply with a ``PenstockError``; broken invariants are logged as well."""
    if error.family is ErrorFamily.INVARIANT:
        log.error("request.failed", error=error, code=error.code)
    return error_answer(error)


def add_error_handlers(app: FastAPI) -> None:
    """Have all errors of ``app`` answered as problem documents."""
    app.add_exception_handler(PenstockError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PenstockError)  # noqa: S101 - registered for nothing else
    return failed(error)


def _allowed(request: Request) -> str:
    """Return the methods of all routes of a path; the framework knows those of the first.

    As OpenAPI reads it, a path that stands there by its name is not also another one's parameter.
    """
    found = [
        route
        for route in iter_route_contexts(request.app.routes)
        if route.path_regex.match(request.scope["path"])
    ]
    exact = min((route.path or "").count("{") for route in found)
    methods = {
        method
        for route in found
        if (route.path or "").count("{") == exact
        for method in route.methods or ()
    }
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    if isinstance(error, BodyTooLargeError):
        return error_answer(too_large(error.limit))
    status = error.status_code
    code = CODE_OF_STATUS.get(status, "http_error")
    answer = problem_answer(problem(code, str(error.detail), status=status))
    if status == HTTP_405_METHOD_NOT_ALLOWED:
        answer.raw_headers.append((b"allow", _allowed(request).encode()))
        return answer
    for name, value in (error.headers or {}).items():
        answer.raw_headers.append((name.lower().encode(), value.encode()))
    return answer


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    found = error.errors()
    malformed = any(one["type"] == "json_invalid" for one in found)
    code = "malformed_json" if malformed else "invalid_request"
    return problem_answer(problem(code, "the request is not valid", errors=findings_of(found)))


async def _gone(_request: Request, _error: Exception) -> Response:
    # Not read by anyone; without an answer it would count as a crash.
    return problem_answer(problem("malformed_request", "the client closed the connection"))


async def _unexpected(_request: Request, error: Exception) -> Response:
    log.error("request.crashed", error=error)
    return problem_answer(problem("internal_error", "", family=ErrorFamily.INVARIANT))
