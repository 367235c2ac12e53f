"""The example runners do what they say, with and without the SDK."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.ids import shard_of
from penstock.runner import Runner
from tests.integration.runner.conftest import Bench
from tests.support.waiting import eventually

EXAMPLES = Path(__file__).parents[3] / "examples" / "runners"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(
    NODE is None or not (EXAMPLES / "node_modules" / "@nats-io" / "jetstream").is_dir(),
    reason="needs node and `npm install` in examples/runners",
)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, "sdk_runner.py"], id="sdk"),
        pytest.param([sys.executable, "plain_runner.py"], id="plain"),
        pytest.param([NODE, "runner.mjs"], id="javascript", marks=needs_node),
    ],
)
async def test_example_runner_counts_words(bench: Bench, command: list[str]) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
        command,
        cwd=EXAMPLES,
        env={**os.environ, "PENSTOCK_NATS_URL": bench.settings.nats_url},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        asked = Runner(kind="tool", queue="text")
        # The first step has its result already, which must not end the runner.
        taken = uuid.uuid4().hex[:26].upper()
        stem = subjects.run_prefix(bench.tenant, shard_of(taken, bench.settings.shards), taken)
        await bench.harness.writer.append(subjects.result(stem, "a", 1), b"{}")
        await bench.schedule(asked, "word-count", {"text": "too late"}, run_id=taken)
        prefix = await bench.schedule(asked, "word-count", {"text": "four words in all"})
        result = await bench.result(prefix)
        assert isinstance(result.output, dict)
        assert result.output["words"] == 4
        if "plain_runner.py" not in command:
            bucket = Bucket(bench.bus, subjects.RUNNERS)
            await eventually(lambda: bucket.keys("tool.text.*"))
            process.send_signal(signal.SIGTERM)
            _, said = await asyncio.to_thread(process.communicate, timeout=30)
            assert process.returncode == 0, said
            assert await bucket.keys("tool.text.*") == []
    finally:
        if process.poll() is None:
            process.kill()
        await asyncio.to_thread(process.communicate)
