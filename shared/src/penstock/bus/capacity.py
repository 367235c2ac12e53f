"""Room in the log: new runs are refused while there is none, open runs continue."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from typing import Final

from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts import subjects
from penstock.contracts.errors import TransientError

_CHECK_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 30.0
_PROBE_SECONDS: Final = 2.0
_WRITE_ERROR: Final = b"write error"


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

    def __init__(self, bus: Bus, max_bytes: int | None, monitor_url: str | None = None) -> None:
        """Prepare the checks.

        Args:
            bus: An open connection.
            max_bytes: Largest size of the log; ``None``: any.
            monitor_url: Monitoring HTTP of nats-server, which knows whether it can write.
        """
        self._bus = bus
        self._max_bytes = max_bytes
        self._monitor_url = monitor_url
        self._checked_at = float("-inf")
        self._refused: str | None = None

    async def refusal(self) -> TransientError | None:
        """Return why no new run may start, as of at most two seconds ago, or ``None``.

        Raises:
            TransientError: The bus does not answer.
        """
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_SECONDS:
            self._checked_at = now
            self._refused = await self._find()
        if self._refused is None:
            return None
        return TransientError("log_full", self._refused, retry_after_seconds=_RETRY_SECONDS)

    async def require(self) -> None:
        """Check that a new run may start.

        Raises:
            TransientError: ``log_full``, or the bus does not answer.
        """
        if (refusal := await self.refusal()) is not None:
            raise refusal

    async def _find(self) -> str | None:
        if self._max_bytes is not None and await log_bytes(self._bus) > self._max_bytes:
            return (
                f"the log exceeds PENSTOCK_LOG_MAX_BYTES ({self._max_bytes}) and the engine has "
                "no more ended runs to delete: no new run can start"
            )
        if self._monitor_url is not None and await asyncio.to_thread(
            cannot_write, self._monitor_url
        ):
            return (
                "nats-server cannot write to its disk: no new run can start until the disk has "
                "room and nats-server was started again"
            )
        return None


def cannot_write(monitor_url: str) -> bool:
    """Return whether nats-server reports that a write of a stream failed.

    It reports so until it is started again. A server that does not answer reports nothing.
    """
    try:
        with urllib.request.urlopen(f"{monitor_url}/healthz", timeout=_PROBE_SECONDS):  # noqa: S310 - the operator's URL
            return False
    except urllib.error.HTTPError as refusal:
        with refusal:
            return _WRITE_ERROR in refusal.read()
    except OSError:
        return False
