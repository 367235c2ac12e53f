"""Publishing and pulling with bare nats-py in the cheapest shapes that it allows.

One wildcard inbox takes all acknowledgements; messages come by a raw subscription to pull
requests. Group commit: what gathers while a batch is in flight goes out as the next one.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

MAX_BATCH: Final = 500
_CREDIT: Final = 512
_EXPIRES_NANOSECONDS: Final = 600 * 10**9

_FENCE_VALUE: Final = "Nats-Expected-Last-Subject-Sequence"
_FENCE_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"

_Waiting = tuple[str, bytes, dict[str, str], asyncio.Future[None]]


class RefusedError(Exception):
    """The stream refused a message."""


async def open_client(url: str) -> Client:
    """Return a connection with room for much that is not written yet."""
    return await nats.connect(url, pending_size=64 * 2**20)


class Publisher:
    """Appends to the log and reports when a message is acknowledged."""

    def __init__(self, client: Client, *, batches: bool) -> None:
        """Use single publishes, or atomic batches wherever more than one message waits."""
        self._client = client
        self._batches = batches
        self._inbox = client.new_inbox() + "."
        self._number = 0
        self._unanswered: dict[str, asyncio.Future[None]] = {}
        self._waiting: deque[_Waiting] = deque()
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> Publisher:
        """Subscribe to the acknowledgements."""
        await self._client.subscribe(self._inbox + "*", cb=self._on_ack)
        return self

    async def append(self, subject: str, body: bytes, fence: str | None = None) -> None:
        """Append one message; it is stored when this returns.

        Raises:
            RefusedError: The stream did not take it.
        """
        headers = {} if fence is None else {_FENCE_VALUE: "0", _FENCE_SUBJECT: fence}
        if not self._batches:
            await self._single(subject, body, headers)
            return
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((subject, body, headers, done))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._send_groups())
        await done

    async def _single(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        reply, answer = self._expect()
        await self._client.publish(subject, body, reply=reply, headers=headers or None)
        await answer

    async def _send_groups(self) -> None:
        await asyncio.sleep(0)  # all that becomes ready in this turn of the loop
        while self._waiting:
            size = min(len(self._waiting), MAX_BATCH)
            group = [self._waiting.popleft() for _ in range(size)]
            try:
                await self._send_group(group)
            except RefusedError as error:
                for *_, done in group:
                    done.set_exception(error)
            else:
                for *_, done in group:
                    if not done.done():
                        done.set_result(None)

    async def _send_group(self, group: list[_Waiting]) -> None:
        if len(group) == 1:
            subject, body, headers, _ = group[0]
            await self._single(subject, body, headers)
            return
        reply, answer = self._expect()
        batch_id = reply[len("_INBOX.") :].replace(".", "-")
        for number, (subject, body, headers, _) in enumerate(group, start=1):
            headers["Nats-Batch-Id"] = batch_id
            headers["Nats-Batch-Sequence"] = str(number)
            if number < len(group):
                await self._client.publish(subject, body, headers=headers)
            else:
                headers["Nats-Batch-Commit"] = "1"
                await self._client.publish(subject, body, reply=reply, headers=headers)
        await answer

    def _expect(self) -> tuple[str, asyncio.Future[None]]:
        self._number += 1
        token = str(self._number)
        answer = self._unanswered[token] = asyncio.get_running_loop().create_future()
        return self._inbox + token, answer

    async def _on_ack(self, message: Msg) -> None:
        answer = self._unanswered.pop(message.subject[len(self._inbox) :], None)
        if answer is None or answer.done():
            return
        if not message.data or b'"error"' in message.data:
            answer.set_exception(RefusedError(message.data.decode() or "no stream"))
        else:
            answer.set_result(None)


class Puller:
    """Hands each message of a durable to a handler and acknowledges it afterwards."""

    def __init__(
        self, client: Client, stream: str, durable: str, handle: Callable[[Msg], Awaitable[None]]
    ) -> None:
        """Prepare; ``start`` begins to pull."""
        self._client = client
        self._handle = handle
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = client.new_inbox()
        self._credit = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin; messages come from now on."""
        await self._client.subscribe(self._inbox, cb=self._on_message)
        await self._ask()

    async def _ask(self) -> None:
        self._credit += _CREDIT
        request = {"batch": _CREDIT, "expires": _EXPIRES_NANOSECONDS}
        await self._client.publish(self._next, json.dumps(request).encode(), reply=self._inbox)

    async def _on_message(self, message: Msg) -> None:
        if not message.reply:
            return  # a status: the request has expired, long after the measurement
        self._credit -= 1
        if self._credit < _CREDIT // 2:
            await self._ask()
        task = asyncio.create_task(self._work(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, message: Msg) -> None:
        await self._handle(message)
        await self._client.publish(message.reply, b"+ACK")
