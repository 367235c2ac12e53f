"""Errors of the client: a problem document, no reply, or a reply of something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from penstock.contracts.errors import ErrorDetail
from penstock.runs.replies import Problem


class ClientError(Exception):
    """Base of all errors that the client raises."""


class UnreachableError(ClientError):
    """No reply. Whether the gateway executed the request is not known.

    Attributes:
        url: Base URL of the gateway.
        timed_out: Whether the time limit passed; else the connection failed.
    """

    def __init__(self, url: str, reason: str, *, timed_out: bool = False) -> None:
        """Create the error; ``reason`` is one line."""
        super().__init__(
            f"the gateway at {url} did not answer in time"
            if timed_out
            else f"no gateway at {url} ({reason})"
        )
        self.url = url
        self.timed_out = timed_out


class UnsendableError(ClientError, ValueError):
    """An argument cannot be sent: an id with a slash, `NaN`, a header with a line break."""


class ReplyError(ClientError):
    """The reply does not have the form of the gateway's: something else answers at the URL."""

    def __init__(self, url: str) -> None:
        """Create the error for the gateway's base URL."""
        super().__init__(f"the reply of {url} is not that of a Penstock gateway")


class ProblemError(ClientError):
    """The gateway refused a request, with a problem document (RFC 9457).

    Attributes:
        status: HTTP status code.
        title: Text of the status.
        code: Stable name of the cause, see the page about errors; empty without a document.
        detail: One sentence for people.
        findings: Each fault with its path and the allowed values.
        retry_after_seconds: Earliest useful repetition, if the gateway named one.
    """

    def __init__(self, problem: Problem, *, retry_after_seconds: float | None = None) -> None:
        """Create the error from the document."""
        self.status = problem.status
        self.title = problem.title
        self.code = problem.code
        self.detail = problem.detail
        self.findings: tuple[ErrorDetail, ...] = problem.errors
        self.retry_after_seconds = retry_after_seconds
        text = problem.detail or f"{problem.status} {problem.title}"
        super().__init__(f"{text} [{problem.code}]" if problem.code else text)


def problem_of(response: httpx.Response) -> ProblemError:
    """Return a refusal as an error; a body that is no problem document is left out.

    Args:
        response: Its body has been read.
    """
    fallback = {"status": response.status_code, "title": response.reason_phrase}
    try:
        problem = Problem.model_validate({**fallback, **response.json()})
    except (ValueError, TypeError, RecursionError):
        problem = Problem.model_validate(fallback)
    after = response.headers.get("retry-after", "")
    return ProblemError(problem, retry_after_seconds=float(after) if after.isdecimal() else None)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Raise ``UnreachableError`` or ``UnsendableError`` instead of httpx's errors."""
    try:
        yield
    except httpx.LocalProtocolError as error:  # its text holds the header, perhaps an API key
        raise UnsendableError("a header has characters that HTTP does not allow") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError, RecursionError) as error:
        raise UnsendableError(f"the request cannot be sent: {error}") from error
    except httpx.RequestError as error:
        timed_out = isinstance(error, httpx.TimeoutException)
        raise UnreachableError(url, str(error), timed_out=timed_out) from error
