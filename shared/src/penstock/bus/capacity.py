"""Size limit of the log: new runs are refused while it is full, open runs continue."""

from __future__ import annotations

import time
from typing import Final

from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts import subjects
from penstock.contracts.errors import TransientError

_CHECK_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 30.0


async def log_bytes(bus: Bus) -> int:
    """Return the size of the log in bytes.

    Raises:
        TransientError: ``log_unavailable``, or the bus does not answer.
    """
    try:
        info = await bus.api(f"STREAM.INFO.{subjects.RUNS}")
    except JetStreamError as error:
        raise TransientError("log_unavailable", str(error)) from error
    return int(info["state"]["bytes"])


class LogCapacity:
    """Checks whether the log has room for new runs; one per process."""

    def __init__(self, bus: Bus, max_bytes: int) -> None:
        """Compare the log's size with ``max_bytes``."""
        self._bus = bus
        self._max_bytes = max_bytes
        self._checked_at = float("-inf")
        self._bytes = 0

    async def full(self) -> bool:
        """Return whether the log exceeds its limit, as of at most two seconds ago.

        Raises:
            TransientError: The bus does not answer.
        """
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_SECONDS:
            self._checked_at = now
            self._bytes = await log_bytes(self._bus)
        return self._bytes > self._max_bytes

    async def require(self) -> None:
        """Check that a new run may start.

        Raises:
            TransientError: ``log_full``, or the bus does not answer.
        """
        if await self.full():
            raise TransientError(
                "log_full",
                f"the log exceeds PENSTOCK_LOG_MAX_BYTES ({self._max_bytes}) and the engine has "
                "no more ended runs to delete: no new run can start",
                retry_after_seconds=_RETRY_SECONDS,
            )
