"""Claim check: bodies too large for the log are objects, and the log holds their digest.

Objects are named by content, so storing one twice is harmless; they outlive the log's facts by
a day.
"""

from __future__ import annotations

import hashlib
from typing import Final

from nats.errors import Error as NatsError
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from penstock.bus.connection import Bus
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, TransientError
from penstock.contracts.messages import Claim
from penstock.contracts.structs import decode, encode

CLAIM_MARK: Final = b'{"type":"claim"'
"""Start of a body that is a claim instead of a fact."""


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
            InvariantError: ``object_corrupt``: the content does not match its digest.
        """
        try:
            store = await self._store()
            found = await store.get(claim.sha256)
        except (NotFoundError, ObjectNotFoundError) as error:
            raise TransientError(
                "object_missing", f"object {claim.sha256} of {claim.size_bytes} bytes is missing"
            ) from error
        except NatsError as error:
            raise _unavailable(error) from error
        body = found.data or b""
        if hashlib.sha256(body).hexdigest() != claim.sha256:
            raise InvariantError("object_corrupt", f"object {claim.sha256} is corrupt")
        return body

    async def pack(self, body: bytes) -> bytes:
        """Return ``body``, or the claim for it if it is above the threshold."""
        if len(body) <= self.threshold_bytes:
            return body
        return encode(await self.put(body))

    async def unpack(self, body: bytes) -> bytes:
        """Return what ``body`` stands for: itself, or the object that it claims."""
        if not body.startswith(CLAIM_MARK):
            return body
        return await self.get(decode(Claim, body))


def _unavailable(error: NatsError) -> TransientError:
    return TransientError("objects_unavailable", f"the object store: {error!r}")
