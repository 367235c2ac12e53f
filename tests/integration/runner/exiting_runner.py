"""A runner whose handlers end everything around them: their task, their thread, the event loop."""

from __future__ import annotations

import asyncio
import os
import sys

from penstock.runner import Runner

runner = Runner(kind="tool", queue=os.environ["QUEUE"])


async def leave() -> None:
    sys.exit(3)


@runner.tool("here")
async def here() -> None:
    await leave()


@runner.tool("thread")
def thread() -> None:
    sys.exit(3)


@runner.tool("task")
async def task() -> None:
    await asyncio.create_task(leave())


@runner.tool("callback")
async def callback() -> str:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.01)
    return "alive"


if __name__ == "__main__":
    runner.run()
