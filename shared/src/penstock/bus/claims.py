"""Claim check: bodies too large for the log are objects, and the log holds their digest.

Objects are named by content, so storing one twice is harmless; they outlive the log's facts by
a day.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from typing import Final

from nats.errors import Error as NatsError
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from penstock.bus.connection import Bus
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, TransientError
from penstock.contracts.messages import Claim
from penstock.contracts.structs import MalformedError, decode, encode

CLAIM_MARK: Final = b'{"type":"claim"'
"""Start of a body that is a claim instead of a fact."""
LOST_AFTER_SECONDS: Final = 15.0
"""An object that has been missing for so long is lost: a stream's leader without a quorum, which
may not know it yet, has been replaced by then."""
_MISSING_KEPT: Final = 1_000


class Claims:
    """Stores and fetches large bodies."""

    def __init__(self, bus: Bus, threshold_bytes: int) -> None:
        """Use the installation's object store.

        Args:
            bus: An open connection.
            threshold_bytes: Bodies above this become claims.
        """
        self.threshold_bytes = threshold_bytes
        self._bus = bus
        self._opened: ObjectStore | None = None
        self._missing: OrderedDict[str, float] = OrderedDict()
        """Missing objects by digest, with the time of the first attempt to read each."""

    async def _store(self) -> ObjectStore:
        if self._opened is None:
            context: JetStreamContext = self._bus.nc.jetstream(timeout=10)
            self._opened = await context.object_store(subjects.ARTIFACTS)
        return self._opened

    async def put(self, body: bytes) -> Claim:
        """Store ``body`` under its SHA-256 and return the claim for it.

        Raises:
            TransientError: ``objects_unavailable``.
        """
        digest = hashlib.sha256(body).hexdigest()
        try:
            store = await self._store()
            known = True
            try:
                await store.get_info(digest)
            except (NotFoundError, ObjectNotFoundError):
                known = False
            if not known:
                await store.put(digest, body)
        except NatsError as error:
            raise _unavailable(error) from error
        return Claim(sha256=digest, size_bytes=len(body))

    async def get(self, claim: Claim) -> bytes:
        """Fetch what a claim stands for.

        Raises:
            TransientError: ``object_missing``: not there, perhaps not yet on this replica;
                ``objects_unavailable``.
            InvariantError: ``object_lost``: it has been missing for 15 s; ``object_corrupt``: the
                content does not match its digest.
        """
        try:
            store = await self._store()
            found = await store.get(claim.sha256)
        except (NotFoundError, ObjectNotFoundError) as error:
            raise self._absent(claim) from error
        except NatsError as error:
            raise _unavailable(error) from error
        self._missing.pop(claim.sha256, None)
        body = found.data or b""
        if hashlib.sha256(body).hexdigest() != claim.sha256:
            raise InvariantError("object_corrupt", f"object {claim.sha256} is corrupt")
        return body

    def _absent(self, claim: Claim) -> TransientError | InvariantError:
        now = time.monotonic()
        since = self._missing.setdefault(claim.sha256, now)
        if len(self._missing) > _MISSING_KEPT:
            self._missing.popitem(last=False)
        text = f"object {claim.sha256} of {claim.size_bytes} bytes is missing"
        if now - since > LOST_AFTER_SECONDS:
            return InvariantError("object_lost", text)
        return TransientError("object_missing", text, retry_after_seconds=1.0)

    async def pack(self, body: bytes) -> bytes:
        """Return ``body``, or the claim for it if it is above the threshold."""
        if len(body) <= self.threshold_bytes:
            return body
        return encode(await self.put(body))

    async def unpack(self, body: bytes) -> bytes:
        """Return what ``body`` stands for: itself, or the object that it claims.

        Raises:
            TransientError: As ``get``.
            InvariantError: As ``get``; ``unreadable_claim``: it is none.
        """
        if not body.startswith(CLAIM_MARK):
            return body
        try:
            claim = decode(Claim, body)
        except MalformedError as error:
            raise InvariantError(
                "unreadable_claim", f"the claim cannot be read: {error}"
            ) from error
        return await self.get(claim)


def _unavailable(error: NatsError) -> TransientError:
    return TransientError("objects_unavailable", f"the object store: {error!r}")
