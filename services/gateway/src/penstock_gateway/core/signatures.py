"""Signatures of webhook deliveries, over the raw bytes, compared in constant time.

Two forms: Standard Webhooks (``webhook-id``, ``webhook-timestamp``, ``webhook-signature``:
https://github.com/standard-webhooks/standard-webhooks) and GitHub's ``X-Hub-Signature-256``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from penstock.contracts.errors import RejectedError

_SECRET_PREFIX: Final = "whsec_"
_VERSION: Final = "v1"
_GITHUB_PREFIX: Final = "sha256="
_MAX_SIGNATURES: Final = 16


@dataclass(frozen=True, slots=True)
class Delivery:
    """A checked delivery.

    ``delivery_id`` is equal for each repetition; ``None`` if deliveries cannot be distinguished.
    """

    delivery_id: str | None
    signed: bool


def secret_bytes(secret: str) -> bytes:
    """Return the key of a secret: base 64 after ``whsec_``, else the text itself.

    Raises:
        RejectedError: ``invalid_secret``.
    """
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret[len(_SECRET_PREFIX) :], validate=True)
    except binascii.Error as error:
        raise RejectedError("invalid_secret", "after whsec_ a secret must be base64") from error


def standard_signature(key: bytes, delivery_id: str, timestamp: str, body: bytes) -> str:
    """Return ``v1,<base64>`` over ``id.timestamp.body``."""
    material = b"%b.%b.%b" % (delivery_id.encode(), timestamp.encode(), body)
    digest = hmac.new(key, material, hashlib.sha256).digest()
    return f"{_VERSION},{base64.b64encode(digest).decode()}"


def github_signature(key: bytes, body: bytes) -> str:
    """Return ``sha256=<hex>`` over the body."""
    return _GITHUB_PREFIX + hmac.new(key, body, hashlib.sha256).hexdigest()


def check(
    headers: Mapping[str, str],
    body: bytes,
    *,
    secrets: Sequence[bytes],
    now: float,
    tolerance_seconds: float,
) -> Delivery:
    """Check a delivery; without secrets only its id is found.

    Args:
        headers: Names in lower case.
        body: The raw bytes that were received.
        secrets: Keys of which any may have signed.
        now: Seconds since the epoch.
        tolerance_seconds: How far the timestamp may be off, either way.

    Raises:
        RejectedError: ``signature_missing``, ``signature_invalid`` or ``signature_expired``.
    """
    if not secrets:
        return Delivery(_sender_id(headers), signed=False)
    if "webhook-signature" in headers:
        _check_standard(headers, body, secrets, now, tolerance_seconds)
        # The id is signed, so a captured delivery cannot be sent again as a new one.
        return Delivery(headers["webhook-id"], signed=True)
    if "x-hub-signature-256" in headers:
        _check_github(headers["x-hub-signature-256"], body, secrets)
        # GitHub's id is not signed, so a captured delivery could be sent under a new id. Without
        # the id, two deliveries with equal bodies could not be distinguished.
        return Delivery(_sender_id(headers) or hashlib.sha256(body).hexdigest(), signed=True)
    raise RejectedError(
        "signature_missing",
        "this webhook is signed: send webhook-id, webhook-timestamp and webhook-signature, "
        "or X-Hub-Signature-256",
    )


def _check_standard(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    now: float,
    tolerance_seconds: float,
) -> None:
    delivery_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not delivery_id or not timestamp.isascii() or not timestamp.isdigit():
        raise RejectedError(
            "signature_invalid", "webhook-id and webhook-timestamp (whole seconds) are needed"
        )
    given = [
        part.encode("utf-8", "replace")
        for part in headers["webhook-signature"].split()[:_MAX_SIGNATURES]
    ]
    valid = False
    for secret in secrets:
        expected = standard_signature(secret, delivery_id, timestamp, body).encode()
        for signature in given:
            # No early exit: the duration must not reveal which signature matches.
            valid |= hmac.compare_digest(expected, signature)
    if not valid:
        raise RejectedError("signature_invalid", "no signature matches")
    if len(timestamp) > 12 or abs(now - int(timestamp)) > tolerance_seconds:
        raise RejectedError(
            "signature_expired",
            f"webhook-timestamp is more than {tolerance_seconds:g} s away from now",
        )


def _check_github(header: str, body: bytes, secrets: Sequence[bytes]) -> None:
    given = header.strip().encode("utf-8", "replace")
    valid = False
    for secret in secrets:
        valid |= hmac.compare_digest(github_signature(secret, body).encode(), given)
    if not valid:
        raise RejectedError("signature_invalid", "signature mismatch")


def _sender_id(headers: Mapping[str, str]) -> str | None:
    return headers.get("webhook-id") or headers.get("x-github-delivery") or None
