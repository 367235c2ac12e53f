"""Secrets of steps: they reach the handler and nothing else."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.facts import SecretRef, StepResult
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.structs import decode, encode
from penstock.runner import Runner
from tests.integration.runner.conftest import Bench
from tests.support.waiting import eventually

CANARY = "c4n4ry/" + "0123456789" * 3
SCRIPT = Path(__file__).with_name("leaky_runner.py")
SECRETS = {
    "/input/key": (SecretRef(secret="KEY"),),
    "/config/headers/x-key": ("Key ", SecretRef(secret="KEY")),
}
CONFIG = {"headers": {"x-key": "Key [secret]"}}


class Leaky:
    """The runner as a process, and all that it writes."""

    def __init__(self, bench: Bench, queue: str, log: Path) -> None:
        self.bench = bench
        self.asked = Runner(kind="tool", queue=queue)
        self.log = log

    async def done(self, name: str, **fields: Any) -> tuple[str, StepResult]:
        given = {"secrets": SECRETS, "config": CONFIG, **fields}
        prefix = await self.bench.schedule(self.asked, name, {"key": "[secret]"}, **given)
        return prefix, await self.bench.result(prefix)


@pytest.fixture
async def leaky(bench: Bench, queue: str, tmp_path: Path) -> AsyncIterator[Leaky]:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            [sys.executable, str(SCRIPT)],
            env={
                **os.environ,
                "PENSTOCK_NATS_URL": bench.settings.nats_url,
                "PENSTOCK_METRICS_PORT": "-1",
                "PENSTOCK_SECRET_KEY": CANARY,
                "QUEUE": queue,
            },
            stderr=stderr,
            stdout=stderr,
        )
    ends = await last_sequences(bench)
    yield Leaky(bench, queue, log)
    process.terminate()
    process.wait()
    assert CANARY not in log.read_text(encoding="utf-8")
    assert [found async for found in leaks(bench, CANARY, after=ends)] == []


async def last_sequences(bench: Bench) -> dict[str, int]:
    """Return the last sequence of every stream and bucket."""
    streams = (await bench.bus.api("STREAM.NAMES"))["streams"]
    infos = [await bench.bus.api(f"STREAM.INFO.{stream}") for stream in streams]
    return {info["config"]["name"]: info["state"]["last_seq"] for info in infos}


async def leaks(bench: Bench, text: str, *, after: Mapping[str, int]) -> AsyncIterator[str]:
    """Yield what holds the text, of the later messages of all streams and buckets."""
    forms = {text.encode(), base64.b64encode(text.encode()), text[:20].encode()}
    for stream, last in (await last_sequences(bench)).items():
        for seq in range(after.get(stream, 0) + 1, last + 1):
            reply = await bench.bus.request(
                f"$JS.API.STREAM.MSG.GET.{stream}", json.dumps({"seq": seq}).encode()
            )
            message = json.loads(reply.data).get("message", {})
            body = base64.b64decode(message.get("data", "")) + message.get("subject", "").encode()
            if any(form in body for form in forms):
                yield f"{stream} {seq} {message['subject']}"


async def test_search_for_leaks_finds_what_is_in_a_result_and_in_a_bucket(
    bench: Bench, queue: str
) -> None:
    runner = Runner(kind="tool", queue=queue)
    known = f"known{queue}"
    ends = await last_sequences(bench)

    @runner.tool("tell")
    async def tell() -> str:
        return known

    await bench.start(runner)
    await bench.done(runner, "tell")
    await Bucket(bench.bus, subjects.LIMITS).put("test.leak", known.encode(), ttl_seconds=60)

    found = {leak.split()[0] async for leak in leaks(bench, known, after=ends)}
    assert found == {subjects.RUNS, f"KV_{subjects.LIMITS}"}


async def test_secrets_reach_the_handler_in_input_and_config(leaky: Leaky) -> None:
    _, result = await leaky.done("check")

    assert result.output == {"input": len(CANARY), "header": len(CANARY) + 4}


async def test_secret_in_an_output_is_masked_in_keys_values_and_the_model(leaky: Leaky) -> None:
    _, result = await leaky.done("give")

    assert result.output == {
        "key": "[secret]",
        "[secret]": ["Bearer [secret]", {"deep": CANARY.encode().hex()[:4]}],
        "n": len(CANARY),
    }
    assert result.model == "model/[secret]"
    await eventually(lambda: "the key is [secret]" in leaky.log.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["refuse", "break", "odd"])
async def test_secret_in_an_error_is_masked_also_where_it_is_cut(leaky: Leaky, name: str) -> None:
    _, result = await leaky.done(name)

    assert result.error is not None
    assert CANARY[:5] not in encode(result).decode()


async def test_secret_in_streamed_text_is_masked_although_it_comes_in_pieces(
    leaky: Leaky,
) -> None:
    prefix, result = await leaky.done("tell")
    tenant, shard, run_id = prefix.split(".")[1:]
    wanted = subjects.delta_filter(tenant, int(shard), run_id)
    texts = [
        text
        async for page in leaky.bench.harness.reader.pages(subjects.DELTAS, wanted)
        for message in page
        for text in decode(DeltaBatch, message.body).texts
    ]

    assert "".join(texts) == "It is [secret], yes."
    assert result.output == "It is [secret], yes."
    assert result.deltas == len(texts)


async def test_secret_in_a_heartbeat_is_masked_in_the_error(leaky: Leaky) -> None:
    _, result = await leaky.done("hold", heartbeat_seconds=0.2)

    assert result.error is not None
    assert result.error.code == "heartbeat_timeout"
    assert "[secret]" in result.error.message


async def test_secret_that_the_runner_does_not_have_is_named(leaky: Leaky) -> None:
    _, result = await leaky.done("check", secrets={"/input/key": (SecretRef(secret="OTHER"),)})

    assert result.error is not None
    assert result.error.code == "secret_missing"
    assert "PENSTOCK_SECRET_OTHER" in result.error.message


async def test_secret_whose_place_holds_something_else_is_not_filled_in(leaky: Leaky) -> None:
    _, result = await leaky.done("check", config={"headers": {"x-key": "changed"}})

    assert result.error is not None
    assert result.error.code == "secrets_misplaced"
