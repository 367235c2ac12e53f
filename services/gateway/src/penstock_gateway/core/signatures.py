"""Signatures of webhook deliveries, over the raw bytes, compared in constant time.

Each webhook has one scheme. Several at once would let a captured delivery of one scheme pass as a
delivery of another: what one signs as a body, another reads as an id, a time and a body.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from penstock.contracts.errors import InvariantError, RejectedError
from penstock.contracts.json import Json
from penstock.contracts.runners import HmacForm, WebhookRecord

MIN_KEY_BYTES: Final = 16
"""Shorter keys can be guessed from one captured delivery."""
MAX_ID_CHARACTERS: Final = 256

_ENCODED_KEY_PREFIX: Final = "whsec_"
_MAX_SIGNATURES: Final = 16
_DIGITS: Final = re.compile(r"[0-9]{1,12}")
_PARTS: Final = re.compile(r"\{(id|timestamp|body)\}")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a sender signs. Names of headers are in lower case."""

    header: str
    """Holds the signature."""
    signed: str = "{body}"
    """The signed text, with ``{id}``, ``{timestamp}`` and ``{body}``."""
    algorithm: str = "sha256"
    encoding: str = "hex"
    prefix: str = ""
    """Precedes the encoded signature."""
    separator: str | None = None
    """Separates several signatures in the header."""
    timestamp: str | None = None
    """Header of the signed time; ending in ``=``: that part of the header of the signature."""
    timestamp_member: str | None = None
    """Member of the body that holds the time in milliseconds."""
    ids: tuple[str, ...] = ()
    """Headers of which the first that is there identifies the delivery."""
    members: tuple[str, ...] = ()
    """Members of the body that do; they are signed and so precede headers."""
    token: bool = False
    """The header holds the secret itself; nothing is signed."""
    encoded_key: bool = False
    """A key after ``whsec_`` is base 64."""


_STANDARD: Final = Scheme(
    "webhook-signature",
    "{id}.{timestamp}.{body}",
    encoding="base64",
    prefix="v1,",
    separator=" ",
    timestamp="webhook-timestamp",
    ids=("webhook-id",),
    encoded_key=True,
)

SCHEMES: Final[Mapping[str, Scheme]] = {
    "standard": _STANDARD,
    "svix": replace(
        _STANDARD, header="svix-signature", timestamp="svix-timestamp", ids=("svix-id",)
    ),
    "github": Scheme("x-hub-signature-256", prefix="sha256=", ids=("x-github-delivery",)),
    "stripe": Scheme(
        "stripe-signature",
        "{timestamp}.{body}",
        prefix="v1=",
        separator=",",
        timestamp="t=",
        members=("id",),
    ),
    "slack": Scheme(
        "x-slack-signature",
        "v0:{timestamp}:{body}",
        prefix="v0=",
        timestamp="x-slack-request-timestamp",
        members=("event_id", "trigger_id"),
    ),
    "shopify": Scheme(
        "x-shopify-hmac-sha256",
        encoding="base64",
        ids=("x-shopify-webhook-id", "x-shopify-event-id"),
    ),
    "gitlab": Scheme("x-gitlab-token", ids=("idempotency-key", "x-gitlab-event-uuid"), token=True),
    "linear": Scheme(
        "linear-signature", timestamp_member="webhookTimestamp", ids=("linear-delivery",)
    ),
    "sentry": Scheme("sentry-hook-signature", ids=("request-id",)),
    "bitbucket": Scheme("x-hub-signature", prefix="sha256=", ids=("x-request-uuid",)),
    "meta": Scheme("x-hub-signature-256", prefix="sha256="),
}
"""Schemes by name; ``hmac`` has its form in the webhook's document."""

_CREDENTIALS: Final = re.compile(
    "auth|cookie|credential|password|secret|signature|token|api-?key|access-?key"
)
_SIGNATURES: Final = frozenset(scheme.header for scheme in SCHEMES.values())


@dataclass(frozen=True, slots=True)
class Delivery:
    """A checked delivery.

    ``delivery_id`` is equal for each repetition; ``None`` if deliveries cannot be distinguished.
    """

    delivery_id: str | None
    signed: bool


def is_credential(header: str) -> bool:
    """Return whether a header, in lower case, is or proves a credential: templates lack it."""
    return header in _SIGNATURES or _CREDENTIALS.search(header) is not None


def scheme_of(record: WebhookRecord) -> Scheme:
    """Return the scheme of a webhook."""
    form = record.hmac
    return SCHEMES[record.scheme] if form is None else _generic(form)


def _generic(form: HmacForm) -> Scheme:
    return Scheme(
        form.header.lower(),
        form.signed,
        algorithm=form.algorithm,
        encoding=form.encoding,
        prefix=form.prefix,
        timestamp=None if form.timestamp_header is None else form.timestamp_header.lower(),
        ids=() if form.id_header is None else (form.id_header.lower(),),
    )


def secret_bytes(secret: str, scheme: Scheme = _STANDARD) -> bytes:
    """Return the key of a secret: base 64 after ``whsec_`` where the scheme has it so, else text.

    Raises:
        InvariantError: ``secret_too_short``.
    """
    key = secret.encode()
    if scheme.encoded_key and secret.startswith(_ENCODED_KEY_PREFIX):
        try:
            key = base64.b64decode(secret[len(_ENCODED_KEY_PREFIX) :], validate=True)
        except binascii.Error:
            # Not every sender encodes its keys; this one is the text itself.
            key = secret.encode()
    if len(key) < MIN_KEY_BYTES:
        raise InvariantError(
            "secret_too_short", f"a webhook's secret must have {MIN_KEY_BYTES} bytes or more"
        )
    return key


def standard_signature(key: bytes, delivery_id: str, timestamp: str, body: bytes) -> str:
    """Return ``v1,<base64>`` over ``id.timestamp.body``."""
    return _signature(_STANDARD, key, _material(_STANDARD, delivery_id, timestamp, body))


def github_signature(key: bytes, body: bytes) -> str:
    """Return ``sha256=<hex>`` over the body."""
    return _signature(SCHEMES["github"], key, body)


def check(
    headers: Mapping[str, str],
    body: bytes,
    *,
    scheme: Scheme,
    secrets: Sequence[bytes],
    now: float,
    tolerance_seconds: float,
) -> Delivery:
    """Check a delivery; without secrets only its id is found.

    Args:
        headers: Names in lower case.
        body: The raw bytes that were received.
        scheme: How the sender signs.
        secrets: Keys of which any may have signed.
        now: Seconds since the epoch.
        tolerance_seconds: How far the timestamp may be off, either way.

    Raises:
        RejectedError: ``signature_missing``, ``signature_invalid`` or ``signature_expired``.
    """
    delivery_id = next((found for name in scheme.ids if (found := headers.get(name))), None)
    if not secrets:
        return Delivery(_bounded(delivery_id), signed=False)
    header = headers.get(scheme.header)
    if header is None:
        raise RejectedError("signature_missing", f"the delivery has no header {scheme.header}")
    parts = [header] if scheme.separator is None else header.split(scheme.separator)
    given = [part.strip() for part in parts[:_MAX_SIGNATURES]]
    if scheme.token:
        _match(given, secrets)
        material = body
    else:
        timestamp = _timestamp(scheme, headers, given)
        material = _material(scheme, delivery_id, timestamp, body)
        _match(given, [_signature(scheme, secret, material).encode() for secret in secrets])
        if timestamp is not None:
            require_recent(int(timestamp), now, tolerance_seconds)
    # Without an id, deliveries are distinguished by the signed bytes.
    return Delivery(_bounded(delivery_id) or hashlib.sha256(material).hexdigest(), signed=True)


def identified(
    delivery: Delivery,
    payload: Json,
    *,
    scheme: Scheme,
    now: float,
    tolerance_seconds: float,
) -> Delivery:
    """Return a delivery with the id that its payload contains, if its scheme has ids there.

    Raises:
        RejectedError: ``signature_expired``, by the time that the payload contains.
    """
    if not isinstance(payload, dict):
        return delivery
    if delivery.signed and scheme.timestamp_member is not None:
        at = payload.get(scheme.timestamp_member)
        seconds = at // 1000 if isinstance(at, int) else 0
        require_recent(seconds, now, tolerance_seconds)
    for name in scheme.members:
        value = payload.get(name)
        if isinstance(value, str) and value:
            return Delivery(_bounded(value), signed=delivery.signed)
    return delivery


def challenge_of(scheme: str, payload: Json) -> str | None:
    """Return the text that a sender expects in return when it verifies the address."""
    if scheme == "slack" and isinstance(payload, dict):
        challenge = payload.get("challenge")
        if payload.get("type") == "url_verification" and isinstance(challenge, str):
            return challenge
    return None


def require_recent(at: int, now: float, tolerance_seconds: float) -> None:
    """Refuse a time, in seconds since the epoch, that is too far from now.

    Raises:
        RejectedError: ``signature_expired``.
    """
    # Of any size: an integer is compared with a float, not made one.
    if not now - tolerance_seconds <= at <= now + tolerance_seconds:
        message = f"the delivery's time is more than {tolerance_seconds:g} s away from now"
        raise RejectedError("signature_expired", message)


def _match(given: Sequence[str], expected: Sequence[bytes]) -> None:
    """Compare every signature with every expected one, so that the time reveals nothing."""
    valid = False
    for one in expected:
        for signature in given:
            valid |= hmac.compare_digest(one, signature.encode("utf-8", "replace"))
    if not valid:
        raise RejectedError("signature_invalid", "no signature matches")


def _timestamp(scheme: Scheme, headers: Mapping[str, str], given: Sequence[str]) -> str | None:
    if scheme.timestamp is None:
        return None
    if scheme.timestamp.endswith("="):
        parts = (part for part in given if part.startswith(scheme.timestamp or ""))
        found = next(parts, "")[len(scheme.timestamp) :]
    else:
        found = headers.get(scheme.timestamp, "")
    if _DIGITS.fullmatch(found) is None:
        raise RejectedError("signature_invalid", "the timestamp must be whole seconds")
    return found


def _material(scheme: Scheme, delivery_id: str | None, timestamp: str | None, body: bytes) -> bytes:
    """Return the signed bytes.

    Raises:
        RejectedError: ``signature_invalid``: the id is missing, or contains what separates it.
    """
    values = {"timestamp": (timestamp or "").encode(), "body": body}
    _, found, after = scheme.signed.partition("{id}")
    if found:
        values["id"] = _signed_id(delivery_id, after).encode()
    pieces = _PARTS.split(scheme.signed)
    return b"".join(
        values[piece] if index % 2 else piece.encode() for index, piece in enumerate(pieces)
    )


def _signed_id(delivery_id: str | None, following: str) -> str:
    """Return an id that can be read in one way only: without what follows it in the material."""
    valid = delivery_id is not None and delivery_id.isascii() and delivery_id.isprintable()
    if not valid or not delivery_id or " " in delivery_id or following[:1] in delivery_id:
        raise RejectedError("signature_invalid", "the delivery's id is missing or malformed")
    return delivery_id


def _signature(scheme: Scheme, key: bytes, material: bytes) -> str:
    digest = hmac.new(key, material, scheme.algorithm)
    if scheme.encoding == "hex":
        return scheme.prefix + digest.hexdigest()
    return scheme.prefix + base64.b64encode(digest.digest()).decode()


def _bounded(delivery_id: str | None) -> str | None:
    """Return an id, or its digest where it is long."""
    if delivery_id is None or len(delivery_id) <= MAX_ID_CHARACTERS:
        return delivery_id
    return hashlib.sha256(delivery_id.encode("utf-8", "surrogatepass")).hexdigest()
