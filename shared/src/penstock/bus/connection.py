"""The connection to the bus: never silently dead.

It reconnects for ever; once nats-py has given it up for good, the process ends, so that its
supervisor starts a new one. Servers without the features that the log needs are refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypedDict

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError, NoServersError
from nats.errors import TimeoutError as NatsTimeoutError

from penstock import clock
from penstock.bus.client import HotClient
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, TransientError
from penstock.settings import CoreSettings
from penstock.telemetry.logs import EventLog
from penstock.telemetry.metrics import BUS_RECONNECTS, CLOCK_OFFSET_SECONDS

log = EventLog(__name__)

MINIMUM_SERVER: Final = (2, 14, 0)
"""First server with message schedules, atomic batches and delete markers as used here."""

EXIT_CONNECTION_LOST: Final = 70
"""Exit status of a process whose connection was closed for good (EX_SOFTWARE)."""


_USER_INFO: Final = re.compile(r"//[^/@,]*@")
"""Login in a URL of the bus, which no log line shows."""
_UNAVAILABLE: Final = 503
_CLOCK_EVERY_SECONDS: Final = 30.0
_CLOCK_REACH_SECONDS: Final = 1.0
"""An answer that took longer says too little about the server's time."""
SKEW_SECONDS: Final = 2.0
"""From here on the offset of a machine's clock is worth a warning."""


class JetStreamError(Exception):
    """The JetStream API refused a request.

    ``code`` is HTTP-like, ``err_code`` the server's own (10077: subject exists, 10071: fence).
    """

    def __init__(self, code: int, err_code: int, description: str) -> None:
        """Create the error from the server's ``error`` object."""
        super().__init__(f"{description} ({code}/{err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


class Bus:
    """An open connection and the few verbs that the rest of Penstock uses on it."""

    def __init__(self, nc: HotClient) -> None:
        """Wrap an open client; use ``connect``."""
        self.nc = nc
        self.on_reconnect: list[Callable[[], None]] = []
        self._clock: asyncio.Task[None] | None = None

    async def publish(
        self, subject: str, body: bytes, *, headers: dict[str, str] | None = None
    ) -> None:
        """Publish on core NATS: at most once, no acknowledgement."""
        await self.nc.publish(subject, body, headers=headers)

    async def request(
        self,
        subject: str,
        body: bytes = b"",
        *,
        timeout_seconds: float = 5.0,
        headers: dict[str, str] | None = None,
    ) -> Msg:
        """Send a request and return its reply.

        Raises:
            TransientError: ``no_responders`` or ``request_timeout``.
        """
        try:
            return await self.nc.request(subject, body, timeout=timeout_seconds, headers=headers)
        except NoRespondersError as error:
            raise TransientError("no_responders", f"no service answers on {subject}") from error
        except NatsTimeoutError as error:
            raise TransientError(
                "request_timeout", f"no answer on {subject} within {timeout_seconds} s"
            ) from error

    async def subscribe(
        self, subject: str, handler: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Subscribe on core NATS; the subscription survives reconnects."""
        return await self.nc.subscribe(subject, queue, cb=handler)

    async def api(
        self, verb: str, request: Mapping[str, Any] | None = None, *, timeout_seconds: float = 5.0
    ) -> dict[str, Any]:
        """Call the JetStream API.

        Args:
            verb: What follows ``$JS.API.``, such as ``STREAM.INFO.RUNS``.
            request: The request body.
            timeout_seconds: How long to wait for the answer.

        Raises:
            JetStreamError: The server refused.
            TransientError: No answer, or ``bus_unavailable``: no leader to answer it yet.
        """
        body = b"" if request is None else json.dumps(request).encode()
        reply = await self.request(f"$JS.API.{verb}", body, timeout_seconds=timeout_seconds)
        answer: dict[str, Any] = json.loads(reply.data)
        error = answer.get("error")
        if error is not None:
            if error.get("code") == _UNAVAILABLE:
                raise TransientError("bus_unavailable", f"{verb}: {error.get('description')}")
            raise JetStreamError(
                error.get("code", 0), error.get("err_code", 0), error.get("description", "")
            )
        return answer

    async def keep_time(self) -> None:
        """Measure the bus's clock now, and again every 30 s until `close`."""
        await self.measure_clock()
        if self._clock is None:
            self._clock = asyncio.create_task(self._keep_time(), name="bus clock")

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_EVERY_SECONDS)
            await self.measure_clock()

    async def measure_clock(self) -> None:
        """Take the server's time from its answer; keep the last offset where none comes."""
        before = clock.epoch()
        try:
            answer = await self.api(
                f"STREAM.INFO.{subjects.bucket_stream(subjects.LEASES)}",
                timeout_seconds=_CLOCK_REACH_SECONDS,
            )
        except (JetStreamError, TransientError, NatsError) as error:
            # Streams that are not there yet, or a server that is away: the next one measures.
            log.debug("bus.clock_unknown", error=str(error))
            return
        after = clock.epoch()
        if not 0 <= after - before <= _CLOCK_REACH_SECONDS:
            return
        error_seconds = datetime.fromisoformat(answer["ts"]).timestamp() - (before + after) / 2
        if abs(error_seconds) <= (after - before) / 2:
            # As far as an answer of that duration shows, the clock is right: it must not jump.
            error_seconds = 0.0
        offset = clock.offset_seconds() + error_seconds
        CLOCK_OFFSET_SECONDS.set(offset)
        if abs(offset) >= SKEW_SECONDS and abs(error_seconds) >= SKEW_SECONDS:
            log.warning("bus.clock_skewed", offset_seconds=round(offset, 3))
        clock.correct(offset)

    @property
    def max_payload_bytes(self) -> int:
        """The server's limit for payload and headers together."""
        return self.nc.max_payload

    async def close(self) -> None:
        """Flush queued messages and close the connection; the process continues."""
        self.nc.closing_on_purpose = True
        if self._clock is not None:
            self._clock.cancel()
        if not self.nc.is_closed:
            if self.nc.is_connected:
                await self.nc.settle(2)
            await self.nc.close()


def parse_version(version: str) -> tuple[int, int, int]:
    """Read ``2.15.1`` or ``v2.15.1-beta.1``; an unreadable version counts as 0.0.0."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)


def require_server(version: str, *, jetstream: bool) -> None:
    """Refuse a server that lacks what the log needs.

    Raises:
        InvariantError: ``server_too_old`` or ``jetstream_missing``, naming the version.
    """
    if parse_version(version) < MINIMUM_SERVER:
        needed = ".".join(map(str, MINIMUM_SERVER))
        raise InvariantError(
            "server_too_old",
            f"nats-server {version} lacks atomic batches, message schedules or delete markers; "
            f"Penstock needs {needed} or newer",
        )
    if not jetstream:
        raise InvariantError(
            "jetstream_missing",
            f"nats-server {version} runs without JetStream; start it with -js or a jetstream block",
        )


class _Auth(TypedDict, total=False):
    user: str
    password: str
    token: str
    user_credentials: str


def _auth(settings: CoreSettings) -> _Auth:
    auth: _Auth = {}
    if settings.nats_user is not None:
        auth["user"] = settings.nats_user
    if settings.nats_password is not None:
        auth["password"] = settings.nats_password.get_secret_value()
    if settings.nats_token is not None:
        auth["token"] = settings.nats_token.get_secret_value()
    if settings.nats_credentials_file is not None:
        auth["user_credentials"] = str(settings.nats_credentials_file)
    return auth


async def connect(settings: CoreSettings, *, name: str, patience_seconds: float = 30.0) -> Bus:
    """Connect to the bus.

    Args:
        settings: Where and as whom.
        name: Shown in the server's connection list.
        patience_seconds: How long to wait for a server that is not up yet.

    Raises:
        InvariantError: The server is too old or has no JetStream.
        TransientError: ``bus_unreachable``.
    """
    nc = HotClient()
    bus = Bus(nc)

    address = _USER_INFO.sub("//", settings.nats_url)
    connecting = True
    reported = False

    async def on_error(error: Exception) -> None:
        nonlocal reported
        if not connecting:
            log.warning("bus.error", error=repr(error))
        elif not reported:
            # Once, although the client tries four times a second.
            reported = True
            waited = {"address": address, "patience_seconds": patience_seconds}
            log.warning("bus.unreachable", **waited, error=repr(error))

    async def on_disconnected() -> None:
        if not nc.closing_on_purpose:
            log.warning("bus.disconnected")

    async def on_reconnected() -> None:
        log.warning("bus.reconnected")
        BUS_RECONNECTS.inc()
        for callback in list(bus.on_reconnect):
            callback()

    async def on_closed() -> None:
        if not nc.closing_on_purpose:
            log.error("bus.closed_for_good")
            logging.shutdown()
            os._exit(EXIT_CONNECTION_LOST)

    nc.closing_on_purpose = True
    try:
        async with asyncio.timeout(patience_seconds):
            await nc.connect(
                servers=settings.nats_servers,
                name=name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type]  # passed to asyncio.sleep
                # A server that is cut off says nothing: it is left after 4 to 6 seconds, and the
                # attempt to come back to it must not take long either.
                ping_interval=2,
                max_outstanding_pings=2,
                pending_size=64 * 2**20,
                connect_timeout=2,
                error_cb=on_error,
                disconnected_cb=on_disconnected,
                reconnected_cb=on_reconnected,
                closed_cb=on_closed,
                **_auth(settings),
            )
    except (NoServersError, OSError, TimeoutError) as error:
        raise TransientError(
            "bus_unreachable",
            f"no nats-server at {address} within {patience_seconds} s: {error}",
        ) from error
    connecting = False
    nc.closing_on_purpose = False
    info = nc._server_info  # noqa: SLF001 - carries what no property does
    try:
        require_server(str(info.get("version", "")), jetstream=bool(info.get("jetstream")))
    except InvariantError:
        await bus.close()
        raise
    await bus.keep_time()
    return bus
