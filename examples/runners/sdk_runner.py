"""A runner for the queue ``text``, on the SDK."""

from penstock.runner import Runner, StepContext

runner = Runner(kind="tool", queue="text", concurrency=16)


@runner.tool("word-count")
async def word_count(ctx: StepContext, text: str) -> dict[str, int]:
    """Count the words of a text."""
    return {"words": len(text.split()), "characters": len(text), "attempt": ctx.attempt}


if __name__ == "__main__":
    runner.run()
