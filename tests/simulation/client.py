"""A connection to the simulated server, in the place of ``penstock.bus.client.HotClient``.

Everything above it is real: bus, writer, reader, consumer, buckets, watches, leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.errors import FlushTimeoutError, NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.errors import ObjectNotFoundError

from penstock.bus.client import header_block, parse_headers
from penstock.bus.connection import Bus
from tests.simulation.loop import Process, SimLoop

if TYPE_CHECKING:
    from tests.simulation.server import Server

Headers = dict[str, str]
Receive = Callable[[str, str, bytes, Headers | None], None]

_EPSILON = 1e-7


class SimSubscription:
    """An interest of a connection in a subject."""

    def __init__(self, client: SimClient, subject: str, receive: Receive) -> None:
        self.client = client
        self.subject = subject
        self.receive = receive

    async def unsubscribe(self) -> None:
        self.client.server.unsubscribe(self)


class SimClient:
    """As much of a client as Penstock uses; messages take their time and may get lost."""

    def __init__(self, loop: SimLoop, process: Process, server: Server) -> None:
        self.loop = loop
        self.process = process
        self.server = server
        self.is_connected = True
        self.is_closed = False
        self.closing_on_purpose = False
        self.max_payload = 2**20
        self.epoch = 0
        """Grows with each new connection: what was under way on the old one is lost."""
        self.bus: Bus | None = None
        self._inboxes = itertools.count(1)
        self._sent_until: dict[str, float] = {}
        self._arrive_until: dict[str, float] = {}
        self._last_arrival = 0.0
        self._calls: set[asyncio.Task[None]] = set()
        self._buffer: list[tuple[str, str, bytes, Headers]] = []
        server.clients.append(self)

    def open(self) -> Bus:
        """Return a bus on this connection."""
        self.bus = Bus(self)  # type: ignore[arg-type]
        return self.bus

    @property
    def alive(self) -> bool:
        return self.is_connected and not self.process.dead

    # -- out -----------------------------------------------------------------------------------

    def new_inbox(self) -> str:
        return f"_INBOX.{self.process.name}.{next(self._inboxes)}"

    def publish_now(
        self,
        subject: str,
        reply: str,
        body: bytes,
        headers: bytes | None = None,
        *,
        urgent: bool = True,
    ) -> None:
        del urgent  # all of a turn of the loop goes out together
        if self.is_connected:
            self._send(subject, reply, body, parse_headers(headers))

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Headers | None = None
    ) -> None:
        self._send_or_keep(subject, reply, payload, dict(headers or {}))

    def _send_or_keep(self, subject: str, reply: str, body: bytes, headers: Headers) -> None:
        if self.is_connected:
            self._send(subject, reply, body, headers)
        else:
            self._buffer.append((subject, reply, body, headers))

    def _send(self, subject: str, reply: str, body: bytes, headers: Headers) -> None:
        process, server = self.process, self.server
        if process.dead:
            return
        if process.sends_left >= 0:
            process.sends_left -= 1
            if process.sends_left < 0:
                self.loop.kill(process, f"before it sent {subject}")
                return
        server.on_sent(subject, body, headers)
        if server.faults.lost("lost_request"):
            server.trace("lost", process.name, subject)
            return
        # In order as far as the server keeps it: each kind of work has a queue of its own.
        lane = subject.split(".", 2)[0] if subject[0] != "$" else subject[:7]
        at = max(
            self._sent_until.get(lane, 0.0) + _EPSILON, self.loop.now + server.faults.latency()
        )
        self._sent_until[lane] = at
        self.loop.call_at(
            at,
            server.receive,
            self,
            self.epoch,
            subject,
            reply,
            body,
            headers,
            context=self.loop.system.context,
        )

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 - nats-py's own
        headers: Headers | None = None,
    ) -> Msg:
        inbox = self.new_inbox()
        answer: asyncio.Future[Msg] = self.loop.create_future()

        def receive(subject: str, reply: str, body: bytes, given: Headers | None) -> None:
            if not answer.done():
                answer.set_result(Msg(self, subject, reply, body, given))  # type: ignore[arg-type]

        subscription = SimSubscription(self, inbox, receive)
        self.server.subscribe(subscription)
        self._send_or_keep(subject, inbox, payload, dict(headers or {}))
        try:
            message = await asyncio.wait_for(answer, timeout)
        except TimeoutError as error:
            raise NatsTimeoutError from error
        finally:
            self.server.unsubscribe(subscription)
        if message.headers and message.headers.get("Status") == "503":
            raise NoRespondersError
        return message

    async def flush(self, timeout: float = 10) -> None:  # noqa: ASYNC109 - nats-py's own
        if not self.is_connected:
            await asyncio.sleep(timeout)
            raise FlushTimeoutError
        there = max([self.loop.now + self.server.faults.latency(), *self._sent_until.values()])
        answer: asyncio.Future[None] = self.loop.create_future()
        epoch = self.epoch

        def pong() -> None:
            if not answer.done() and epoch == self.epoch:
                answer.set_result(None)

        def ping() -> None:
            back = max(self.loop.now + self.server.faults.latency(), self._last_arrival)
            self.loop.call_at(back + _EPSILON, pong, context=self.process.context)

        self.loop.call_at(there + _EPSILON, ping, context=self.loop.system.context)
        try:
            await asyncio.wait_for(answer, timeout)
        except TimeoutError as error:
            raise FlushTimeoutError from error

    async def settle(self, seconds: float) -> None:
        with contextlib.suppress(FlushTimeoutError):  # logged by the real one
            await self.flush(seconds)

    async def close(self) -> None:
        self.is_closed = True
        self.is_connected = False
        self.epoch += 1
        self.server.forget(self)

    # -- in ------------------------------------------------------------------------------------

    async def subscribe(
        self, subject: str, queue: str = "", cb: Callable[[Msg], Awaitable[None]] | None = None
    ) -> SimSubscription:
        assert cb is not None
        assert not queue

        def receive(subject: str, reply: str, body: bytes, headers: Headers | None) -> None:
            message = Msg(self, subject, reply, body, headers)  # type: ignore[arg-type]
            self._calls.add(task := self.loop.create_task(self._call(cb, message)))
            task.add_done_callback(self._calls.discard)

        subscription = SimSubscription(self, subject, receive)
        self.server.subscribe(subscription)
        return subscription

    async def _call(self, callback: Callable[[Msg], Awaitable[None]], message: Msg) -> None:
        await callback(message)

    async def subscribe_direct(
        self,
        subject: str,
        handler: Callable[[str, str, bytes, bytes | None], None],
        *,
        queue: str = "",
    ) -> SimSubscription:
        assert not queue

        def receive(subject: str, reply: str, body: bytes, headers: Headers | None) -> None:
            handler(subject, reply, body, _block(headers))

        subscription = SimSubscription(self, subject, receive)
        self.server.subscribe(subscription)
        return subscription

    async def unsubscribe_direct(self, subscription: SimSubscription) -> None:
        self.server.lose_interest(subscription)
        with suppress(FlushTimeoutError):
            await self.flush(2)
        self.server.unsubscribe(subscription)

    def arrive(
        self,
        subscription: SimSubscription,
        lane: str,
        subject: str,
        reply: str,
        body: bytes,
        headers: Headers | None,
    ) -> None:
        """Put a message on its way to a subscription; those of a lane keep their order."""
        at = max(
            self._arrive_until.get(lane, 0.0) + _EPSILON,
            self.loop.now + self.server.faults.latency(),
        )
        self._arrive_until[lane] = at
        self._last_arrival = max(self._last_arrival, at)
        self.loop.call_at(
            at,
            self._hand_over,
            subscription,
            self.epoch,
            subject,
            reply,
            body,
            headers,
            context=self.process.context,
        )

    def _hand_over(
        self,
        subscription: SimSubscription,
        epoch: int,
        subject: str,
        reply: str,
        body: bytes,
        headers: Headers | None,
    ) -> None:
        if epoch == self.epoch and self.server.subscribed(subscription):
            subscription.receive(subject, reply, body, headers)

    # -- faults --------------------------------------------------------------------------------

    def disconnect(self, seconds: float) -> None:
        """Lose the connection and all that is under way, for so long."""
        if self.is_closed or not self.is_connected:
            return
        self.is_connected = False
        self.epoch += 1
        self.loop.call_in(self.process, seconds, self.reconnect)

    def reconnect(self) -> None:
        """Have a new connection."""
        if self.is_closed or self.is_connected:
            return
        self.is_connected = True
        buffered, self._buffer = self._buffer, []
        for message in buffered:
            self._send(*message)
        if self.bus is not None:
            for callback in list(self.bus.on_reconnect):
                callback()

    # -- objects -------------------------------------------------------------------------------

    def jetstream(self, **_options: Any) -> SimClient:
        return self

    async def object_store(self, _bucket: str) -> SimObjects:
        return SimObjects(self)


class SimObjects:
    """The object store: content by name, after a moment."""

    def __init__(self, client: SimClient) -> None:
        self._client = client

    async def _round_trip(self) -> None:
        faults = self._client.server.faults
        await asyncio.sleep(faults.latency() * 2)
        if not self._client.is_connected or faults.lost("lost_answer"):
            await asyncio.sleep(5)
            raise NatsTimeoutError

    async def get_info(self, name: str) -> None:
        await self._round_trip()
        if name not in self._client.server.objects:
            raise ObjectNotFoundError

    async def put(self, name: str, data: bytes) -> None:
        await self._round_trip()
        if not self._client.process.dead:
            self._client.server.objects[name] = data

    async def get(self, name: str) -> Any:
        await self._round_trip()
        found = self._client.server.objects.get(name)
        if found is None:
            raise ObjectNotFoundError
        return _Found(found)


class _Found:
    def __init__(self, data: bytes) -> None:
        self.data = data


def _block(headers: Headers | None) -> bytes | None:
    """Return headers as they come over the wire."""
    if headers is None:
        return None
    if "Status" not in headers:
        return header_block(headers)
    rest = {name: text for name, text in headers.items() if name not in ("Status", "Description")}
    status = f"{headers['Status']} {headers.get('Description', '')}".strip().encode()
    return header_block(rest).replace(b"NATS/1.0", b"NATS/1.0 " + status, 1)


def as_json(value: object) -> bytes:
    """Return what the server answers with."""
    return json.dumps(value).encode()
