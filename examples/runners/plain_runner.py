"""A runner for the queue ``text`` that knows NATS only: no part of Penstock is imported."""

import asyncio
import json
import os
from datetime import UTC, datetime

import nats
from nats.errors import TimeoutError as NothingToDo
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError

STEPS, DURABLE = "run.*.*.*.out.*.step.tool.text.>", "runner_tool_text"
LATE = 10077  # the subject has its message: another result counts


async def main() -> None:
    connection = await nats.connect(os.environ.get("PENSTOCK_NATS_URL", "nats://127.0.0.1:4222"))
    bus = connection.jetstream()
    config = ConsumerConfig(
        ack_policy=AckPolicy.EXPLICIT, ack_wait=10, max_deliver=-1, max_ack_pending=10_000
    )
    steps = await bus.pull_subscribe(STEPS, durable=DURABLE, stream="RUNS", config=config)
    while True:
        try:
            (message,) = await steps.fetch(1, timeout=5)
        except NothingToDo:
            continue
        started_at = datetime.now(UTC).isoformat()
        tenant, shard, run = message.subject.split(".")[1:4]
        step, attempt = message.subject.split(".")[-2:]
        asked = json.loads(message.data)
        result = {
            "type": "step.result",
            "kind": "tool",
            "name": asked["name"],
            "status": "succeeded",
            "output": {"words": len(asked["input"]["text"].split())},
            "runner_id": "plain-1",
            "started_at": started_at,
            "occurred_at": datetime.now(UTC).isoformat(),
        }
        subject = f"run.{tenant}.{shard}.{run}.in.result.{step}.{attempt}"
        try:
            await bus.publish(subject, json.dumps(result).encode())
        except APIError as error:
            if error.err_code != LATE:
                raise
        await message.ack()


if __name__ == "__main__":
    asyncio.run(main())
