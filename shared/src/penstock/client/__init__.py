"""The Python client of the HTTP API: ``Client`` blocks, ``AsyncClient`` is for asyncio.

Needs the extra ``client``.
"""

from penstock.client.calls import Call, Items, RunFilter, path_of
from penstock.client.client import AsyncClient, Client
from penstock.client.errors import (
    ClientError,
    ProblemError,
    ReplyError,
    UnreachableError,
    UnsendableError,
)

__all__ = [
    "AsyncClient",
    "Call",
    "Client",
    "ClientError",
    "Items",
    "ProblemError",
    "ReplyError",
    "RunFilter",
    "UnreachableError",
    "UnsendableError",
    "path_of",
]
