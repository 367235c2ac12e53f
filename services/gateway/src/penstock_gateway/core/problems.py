"""Errors in HTTP: one table of status codes, RFC 9457 problem documents.

This is the only place in Penstock where an error meets an HTTP status.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from penstock.contracts.errors import ErrorDetail, ErrorFamily, ErrorInfo, PenstockError, finding
from penstock.runs.replies import Problem

PROBLEM_TYPE: Final = "urn:penstock:problem:"
MEDIA_TYPE: Final = "application/problem+json"
DEFAULT_RETRY_AFTER_SECONDS: Final = 1.0

STATUS_OF_FAMILY: Final[Mapping[ErrorFamily, int]] = {
    ErrorFamily.REJECTED: 422,
    ErrorFamily.TRANSIENT: 503,
    ErrorFamily.CONFLICT: 409,
    ErrorFamily.INVARIANT: 500,
}

STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "malformed_json": 400,
    "malformed_yaml": 400,
    "malformed_request": 400,
    "unauthenticated": 401,
    "signature_missing": 401,
    "signature_invalid": 401,
    "signature_expired": 401,
    "forbidden": 403,
    "origin_refused": 403,
    "bundle_unsigned": 403,
    "plan_not_published": 403,
    "not_found": 404,
    "unknown_agent": 404,
    "unknown_definition": 404,
    "unknown_key": 404,
    "unknown_name": 404,
    "unknown_version": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "nobody_waits": 404,
    "already_decided": 409,
    "digest_mismatch": 409,
    "not_waiting": 409,
    "paused_by_document": 409,
    "run_ended": 409,
    "session_idle": 409,
    "step_not_cancellable": 409,
    "in_use": 409,
    "already_exists": 409,
    "question_expired": 410,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_key_reused": 422,
    "rate_limited": 429,
    "too_many_streams": 429,
    "internal_error": 500,
    "log_full": 507,
}

TITLE_OF_STATUS: Final[Mapping[int, str]] = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    507: "Insufficient Storage",
}

CODE_OF_STATUS: Final[Mapping[int, str]] = {
    400: "malformed_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
}


PROBLEM: Final[TypeAdapter[Problem]] = TypeAdapter(Problem)


def status_of(code: str, family: ErrorFamily) -> int:
    """Return the HTTP status of an error: by its code where the table has it, else its family."""
    status = STATUS_OF_CODE.get(code)
    if status is not None:
        return status
    if code.endswith("_not_found"):
        return 404
    return STATUS_OF_FAMILY[family]


def problem(
    code: str,
    detail: str,
    *,
    family: ErrorFamily = ErrorFamily.REJECTED,
    status: int | None = None,
    errors: tuple[ErrorDetail, ...] = (),
) -> Problem:
    """Describe an error to a client.

    The text of an invariant that broke is for the log alone: clients get its code.
    """
    status = status if status is not None else status_of(code, family)
    if status >= 500 and family is ErrorFamily.INVARIANT:
        detail, errors = "Something went wrong on our side; it has been logged.", ()
    return Problem(
        type=f"{PROBLEM_TYPE}{code}",
        title=TITLE_OF_STATUS.get(status, "Error"),
        status=status,
        detail=detail,
        code=code,
        errors=errors,
    )


def problem_of(error: PenstockError) -> Problem:
    """Describe a ``PenstockError``."""
    return problem_of_info(error.info())


def problem_of_info(info: ErrorInfo) -> Problem:
    """Describe an error that came as data."""
    return problem(info.code, info.message, family=info.family, errors=info.details)


def retry_after(error: PenstockError) -> int | None:
    """Return whole seconds for ``Retry-After``, where trying again makes sense."""
    if error.retry_after_seconds is not None:
        return max(1, math.ceil(error.retry_after_seconds))
    if error.family is ErrorFamily.TRANSIENT:
        return math.ceil(DEFAULT_RETRY_AFTER_SECONDS)
    return None


def findings(error: ValidationError, *, at: str = "") -> tuple[ErrorDetail, ...]:
    """Return what pydantic found, each with its exact path and what would be allowed."""
    return findings_of(error.errors(include_url=False, include_input=False), at=at)


def findings_of(errors: Iterable[ErrorDetails], *, at: str = "") -> tuple[ErrorDetail, ...]:
    """Return findings in pydantic's form in ours.

    Args:
        errors: As ``ValidationError.errors()`` gives them.
        at: Stands before every path.
    """
    return tuple(
        finding(_path(at, error["loc"]), error["msg"], _allowed(error.get("ctx")))
        for error in errors
    )


def _path(at: str, place: tuple[int | str, ...]) -> str:
    path = at
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


_LIMITS: Final = (
    "expected",
    "pattern",
    "expected_tags",
    "ge",
    "gt",
    "le",
    "lt",
    "max_length",
    "min_length",
)


def _allowed(context: Mapping[str, JsonValue] | None) -> str | None:
    if not context:
        return None
    found = [
        str(context[name]) if name in ("expected", "pattern") else f"{name} {context[name]}"
        for name in _LIMITS
        if name in context
    ]
    return ", ".join(found) or None
