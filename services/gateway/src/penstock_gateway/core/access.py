"""Who asks, and what they may do. The tenant of a request comes from its key alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.runners import KeyRecord

Role = Literal["admin", "operator", "viewer", "runner"]

_INCLUDES: Final[dict[str, frozenset[str]]] = {
    "admin": frozenset({"admin", "operator", "viewer", "runner"}),
    "operator": frozenset({"operator", "viewer"}),
    "viewer": frozenset({"viewer"}),
    "runner": frozenset({"runner"}),
}
_BEARER: Final = b"bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. ``may`` holds every role that those of the key include."""

    tenant: str
    key_id: str
    may: frozenset[str]
    expires_at: datetime | None = None

    def require(self, role: Role) -> None:
        """Check that the caller has a role.

        Raises:
            RejectedError: ``forbidden``.
        """
        if role not in self.may:
            raise forbidden(role)


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission of a long request, which is checked again while the request lasts."""

    key_id: str | None
    """The key that is charged for the request; ``None``: nothing is."""
    valid: Callable[[], bool]
    """Returns whether the key exists and has not expired."""


def forbidden(role: Role) -> RejectedError:
    """Return the error of a caller who does not have the role."""
    detail = finding("authorization", "role missing", role)
    return RejectedError("forbidden", f"this needs the role {role}", details=(detail,))


def caller_of(record: KeyRecord) -> Caller:
    """Return the caller that a key stands for."""
    may: frozenset[str] = frozenset().union(*(_INCLUDES[role] for role in record.roles))
    return Caller(record.tenant, record.key_id, may, record.expires_at)


def unchecked_caller(tenant: str) -> Caller:
    """Return the caller of a development gateway, who may do everything in one tenant."""
    return Caller(tenant, "development", _INCLUDES["admin"])


def key_digest(key: bytes) -> str:
    """Return the name under which a key is stored: its SHA-256 in hexadecimal."""
    return hashlib.sha256(key).hexdigest()


def bearer_key(authorization: bytes) -> bytes:
    """Return the key in an ``Authorization`` header.

    Raises:
        RejectedError: ``unauthenticated``.
    """
    if authorization[:7].lower() != _BEARER or not (key := authorization[7:].strip()):
        raise unauthenticated("the Authorization header is not of the form 'Bearer KEY'")
    return key


def unauthenticated(message: str) -> RejectedError:
    """Return the error of a request without a valid key."""
    return RejectedError(
        "unauthenticated",
        message,
        details=(finding("authorization", "missing or invalid", "Bearer KEY"),),
    )
