"""The two processes behind the raw limit: an engine that counts steps, a runner that does nothing.

    python -m bench.raw_process engine|runner URL single|batch

They state the facts of a run as Penstock's do, with its subjects and fences, and nothing else.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop
from nats.aio.msg import Msg

from bench.raw_log import Publisher, Puller, open_client
from penstock.contracts import subjects

KIND = "tool"
QUEUE = "raw"
BODY_BYTES = 400
SHARD = 0


def fact(steps: int) -> bytes:
    """Return a body as large as a fact's usually is; it begins with the run's number of steps."""
    return b"%d" % steps + b"." * (BODY_BYTES - 1)


def ready_subject(role: str) -> str:
    """Return the subject on which a process answers once it pulls."""
    return f"bench.ready.{role}"


class Engine:
    """Schedules the next step, or the end."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._done: dict[str, int] = {}
        self._steps: dict[str, int] = {}

    async def handle(self, message: Msg) -> None:
        """Decide what follows an input."""
        subject = subjects.parse_fact(message.subject)
        run_id = subject.run_id
        if subject.event == "invoke":
            self._steps[run_id] = int(message.data[:1])
            self._done[run_id] = 0
        else:
            self._done[run_id] += 1
        number = self._done[run_id] + 1
        if number > self._steps[run_id]:
            del self._done[run_id], self._steps[run_id]
            suffix = subjects.END_SUFFIX
        else:
            suffix = subjects.step_suffix(KIND, QUEUE, f"s{number}", 1)
        prefix = subjects.run_prefix(subject.tenant, subject.shard, run_id)
        await self._publisher.append(
            subjects.out(prefix, number, suffix), message.data, subjects.fence(prefix, number)
        )


class Runner:
    """Answers each step with its own body."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def handle(self, message: Msg) -> None:
        """State the result of a step."""
        subject = subjects.parse_fact(message.subject)
        prefix = subjects.run_prefix(subject.tenant, subject.shard, subject.run_id)
        result = subjects.result(prefix, subject.step_id, subject.attempt)
        await self._publisher.append(result, message.data)


async def serve(role: str, url: str, publishes: str) -> None:
    """Work until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    client = await open_client(url)
    publisher = await Publisher(client, batches=publishes == "batch").start()
    worker = Engine(publisher) if role == "engine" else Runner(publisher)
    durable = (
        subjects.engine_consumer(SHARD)
        if role == "engine"
        else subjects.runner_consumer(KIND, QUEUE)
    )
    await Puller(client, subjects.RUNS, durable, worker.handle).start()

    async def answer(message: Msg) -> None:
        await client.publish(message.reply, b"")

    await client.subscribe(ready_subject(role), cb=answer)
    await stopped.wait()
    await client.close()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:4]))
