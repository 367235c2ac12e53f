"""A runner whose handlers do everything to let a secret out."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.usage import Usage
from penstock.runner import Runner, StepContext

runner = Runner(kind="tool", queue=os.environ["QUEUE"])
log = logging.getLogger("somebody.else")


@runner.tool("give")
async def give(ctx: StepContext, key: str) -> Any:
    ctx.model = f"model/{key}"
    ctx.usage = Usage(model_calls=1)
    log.warning("the key is %s", key)
    return {"key": key, key: [f"Bearer {key}", {"deep": key.encode().hex()[:4]}], "n": len(key)}


@runner.tool("refuse")
async def refuse(key: str) -> None:
    detail = ErrorDetail(path=key, message=key, allowed=f"not {key}")
    raise RejectedError("no", f"{'x' * 1990}{key}", details=(detail,))


@runner.tool("break")
def break_(key: str) -> None:
    raise KeyError(f"{'x' * 1975}{key}")


@runner.tool("tell")
async def tell(ctx: StepContext, key: str) -> str:
    for character in f"It is {key}, yes.":
        await ctx.emit_delta(character)
    return f"It is {key}, yes."


@runner.tool("hold")
async def hold(ctx: StepContext, key: str) -> None:
    ctx.heartbeat({"at": key})
    await ctx.cancelled.wait()


@runner.tool("odd")
async def odd(key: str) -> Any:
    class Odd:
        def __repr__(self) -> str:
            return key

    return Odd()


@runner.tool("check")
async def check(ctx: StepContext, key: str) -> dict[str, Any]:
    """Say whether the secrets came where they belong."""
    config: Any = ctx.config
    return {"input": len(key), "header": len(config["headers"]["x-key"])}


if __name__ == "__main__":
    runner.run()
    sys.exit(0)
