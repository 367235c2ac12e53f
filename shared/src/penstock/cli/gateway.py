"""The gateway for commands: the blocking client, its errors as errors of a command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from penstock.cli.failure import FAILED, MISUSED, CommandError, Finding

if TYPE_CHECKING:
    import typer

    from penstock.client import Client, ProblemError
    from penstock.client.calls import QueryValue
    from penstock.contracts.json import Json

T = TypeVar("T")

REQUEST_SECONDS: Final = 30.0
LONG_SECONDS: Final = 300.0
"""Time limit of requests about many runs or about whole logs."""
_MISUSE: Final = frozenset({400, 404, 409, 413, 415, 422})


@contextmanager
def gateway(context: typer.Context) -> Iterator[Client]:
    """Connect to the target of the command line.

    Raises:
        CommandError: The gateway cannot be reached, or refused a request.
    """
    from penstock.client import Client, ClientError, ProblemError, UnreachableError, UnsendableError

    target = context.obj
    try:
        client = Client(target.url, target.api_key)
    except ValueError as error:
        raise CommandError(str(error), exit_code=MISUSED) from error
    with client:
        try:
            yield client
        except ProblemError as error:
            raise refusal(error) from error
        except UnreachableError as error:
            hint = ": is `penstock dev` running? PENSTOCK_URL or --url names another"
            raise CommandError(f"{error}{'' if error.timed_out else hint}") from error
        except ClientError as error:
            misused = isinstance(error, UnsendableError)
            raise CommandError(str(error), exit_code=MISUSED if misused else FAILED) from error


def send(  # noqa: PLR0913 - the parts of one request
    context: typer.Context,
    reply: type[T],
    method: str,
    path: str,
    body: Json = None,
    *,
    ids: Sequence[str] = (),
    params: Mapping[str, QueryValue] | None = None,
    headers: Mapping[str, str | None] | None = None,
    timeout_seconds: float = REQUEST_SECONDS,
) -> T:
    """Send one request for which the client has no method; arguments as of ``Call``.

    ``ids`` take the places of ``{}`` in ``path``.

    Raises:
        CommandError: The gateway cannot be reached, or refused it.
    """
    from penstock.client import Call, path_of

    with gateway(context) as client:
        call = Call(reply, method, path_of(path, *ids), params=params or {}, headers=headers or {},
                    timeout_seconds=timeout_seconds)  # fmt: skip
        return client.send(call if body is None else replace(call, body=body))


def refusal(error: ProblemError) -> CommandError:
    """Return a refused request as an error of a command."""
    hint = " (give a key by PENSTOCK_API_KEY or --api-key)" if error.status == 401 else ""
    return CommandError(
        f"{error}{hint}",
        findings=tuple(Finding(one.path, one.message, one.allowed) for one in error.findings),
        exit_code=MISUSED if error.status in _MISUSE else FAILED,
    )
