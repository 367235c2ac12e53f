"""The connection's policy: it waits for a server, refuses an old one, and never dies silently."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from penstock.bus.connection import (
    EXIT_CONNECTION_LOST,
    JetStreamError,
    connect,
    parse_version,
    require_server,
)
from penstock.contracts.errors import InvariantError, TransientError
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings
from tests.integration.bus.conftest import Bench, OpenBench
from tests.support.waiting import eventually

FakeServer = Callable[..., Awaitable[str]]


@pytest.fixture
async def fake_server() -> AsyncIterator[FakeServer]:
    """Speak just enough of the protocol to be connected to, as whatever server."""
    async with AsyncExitStack() as stack:

        async def fake_server(**info: Any) -> str:
            async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                said = {"server_id": "x", "max_payload": 1048576, "headers": True, **info}
                writer.write(b"INFO " + json.dumps(said).encode() + b"\r\n")
                while line := await reader.readline():
                    if line.startswith(b"PING"):
                        writer.write(b"PONG\r\n")
                writer.close()

            server = await asyncio.start_server(talk, "127.0.0.1", 0)
            stack.callback(server.close)
            return f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        yield fake_server


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("2.15.1", (2, 15, 1)),
        ("v2.14.0-RC.3", (2, 14, 0)),
        ("2.9.25", (2, 9, 25)),
        ("", (0, 0, 0)),
        ("dev", (0, 0, 0)),
    ],
)
def test_parse_version_reads_what_servers_say(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("version", ["2.14.0", "2.15.1", "3.0.0"])
def test_require_server_accepts_versions_with_what_is_needed(version: str) -> None:
    require_server(version, jetstream=True)


@pytest.mark.parametrize("version", ["2.13.9", "2.9.0", "1.4.1", ""])
def test_require_server_refuses_an_older_version_by_name(version: str) -> None:
    with pytest.raises(InvariantError) as refused:
        require_server(version, jetstream=True)

    assert refused.value.code == "server_too_old"
    assert f"nats-server {version}" in refused.value.message
    assert "2.14.0" in refused.value.message


def test_require_server_refuses_one_without_jetstream() -> None:
    with pytest.raises(InvariantError) as refused:
        require_server("2.15.1", jetstream=False)

    assert refused.value.code == "jetstream_missing"


async def test_connect_to_an_older_server_is_refused(fake_server: FakeServer) -> None:
    settings = CoreSettings(nats_url=await fake_server(version="2.11.4", jetstream=True))

    with pytest.raises(InvariantError) as refused:
        await connect(settings, name="test")

    assert refused.value.code == "server_too_old"
    assert "2.11.4" in refused.value.message


async def test_connect_to_a_server_without_jetstream_is_refused(fake_server: FakeServer) -> None:
    settings = CoreSettings(nats_url=await fake_server(version="2.15.1"))

    with pytest.raises(InvariantError) as refused:
        await connect(settings, name="test")

    assert refused.value.code == "jetstream_missing"


async def test_attempts_that_fail_leave_no_connection_open(
    create_nats_server: Callable[..., NatsServer],
) -> None:
    server = create_nats_server()
    bus = await connect(CoreSettings(nats_url=server.url), name="test")
    attempts: list[asyncio.StreamWriter] = []

    # A server that is about to end accepts a connection and closes it before its first word.
    async def close_at_once(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(bus.nc._transport._io_writer)  # type: ignore[union-attr]
        writer.close()

    await asyncio.to_thread(server.kill)
    dying = await asyncio.start_server(close_at_once, "127.0.0.1", server.port)
    await eventually(lambda: len(attempts) >= 4)
    dying.close()
    await asyncio.to_thread(server.start)
    await eventually(lambda: bus.nc.is_connected)

    used = bus.nc._transport._io_writer  # type: ignore[union-attr]
    assert all(writer.is_closing() for writer in attempts if writer is not used)
    await bus.close()


async def test_connect_where_nobody_listens_gives_up_after_its_patience(
    create_nats_server: Callable[..., NatsServer],
) -> None:
    server = create_nats_server()
    server.stop()

    with pytest.raises(TransientError) as unreachable:
        await connect(CoreSettings(nats_url=server.url), name="test", patience_seconds=0.5)

    assert unreachable.value.code == "bus_unreachable"
    assert server.url in unreachable.value.message


async def test_connect_waits_for_a_server_that_is_about_to_start(
    create_nats_server: Callable[..., NatsServer],
) -> None:
    server = create_nats_server()
    server.stop()
    connecting = asyncio.create_task(
        connect(CoreSettings(nats_url=server.url), name="test", patience_seconds=20)
    )
    await asyncio.wait([connecting], timeout=0.5)
    await asyncio.to_thread(server.start)

    bus = await connecting

    assert bus.nc.is_connected
    await bus.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": 503, "err_code": 10008, "description": "temporarily unavailable"}, "503"),
        ({"code": 404, "err_code": 10059, "description": "stream not found"}, "404"),
    ],
    ids=["no leader", "not there"],
)
async def test_api_that_has_no_leader_yet_is_transient_other_refusals_are_not(
    bench: Bench, error: dict[str, Any], expected: str
) -> None:
    async def refuse(message: Msg) -> None:
        await message.respond(json.dumps({"error": error}).encode())

    # No verb of the server's: what answers is this test.
    verb = f"PENSTOCK.{bench.tenant}"
    await bench.bus.subscribe(f"$JS.API.{verb}", refuse)
    with pytest.raises((TransientError, JetStreamError)) as refused:
        await bench.bus.api(verb)

    raised = refused.value
    if expected == "503":
        assert isinstance(raised, TransientError)
        assert raised.code == "bus_unavailable"
    else:
        assert isinstance(raised, JetStreamError)


async def test_request_that_nobody_serves_says_so(bench: Bench) -> None:
    with pytest.raises(TransientError) as missing:
        await bench.bus.request(f"{bench.tenant}.nobody")

    assert missing.value.code == "no_responders"


async def test_request_without_an_answer_times_out(bench: Bench) -> None:
    async def keep_silent(_message: object) -> None:
        return

    await bench.bus.subscribe(f"{bench.tenant}.silent", keep_silent)
    with pytest.raises(TransientError) as late:
        await bench.bus.request(f"{bench.tenant}.silent", timeout_seconds=0.1)

    assert late.value.code == "request_timeout"


async def test_api_error_carries_the_servers_codes(bench: Bench) -> None:
    with pytest.raises(JetStreamError) as refused:
        await bench.bus.api("STREAM.INFO.NOWHERE")

    assert (refused.value.code, refused.value.err_code) == (404, 10059)


async def test_bus_answers_requests_again_after_the_server_was_killed(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench
) -> None:
    server = create_nats_server()
    bench = await open_bench(server)
    await asyncio.to_thread(server.kill)
    await eventually(lambda: not bench.bus.nc.is_connected, within=30)
    await asyncio.to_thread(server.start)

    await eventually(lambda: bench.bus.nc.is_connected, within=30)
    assert (await bench.bus.api("STREAM.INFO.RUNS"))["config"]["name"] == "RUNS"


async def test_bus_of_a_server_that_stands_still_is_closed(
    create_nats_server: Callable[..., NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.bus.client")
    server = create_nats_server()
    bus = await connect(CoreSettings(nats_url=server.url), name="test")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        await bus.close()
    finally:
        os.kill(server.pid, signal.SIGCONT)

    assert bus.nc.is_closed
    assert "bus.unsettled" in caplog.text


CHILD = """
import asyncio, sys
from penstock.bus.connection import connect
from penstock.settings import CoreSettings

async def main():
    bus = await connect(CoreSettings(nats_url=sys.argv[1]), name="child")
    {body}

asyncio.run(main())
"""


def run_child(server: NatsServer, tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(body=body), server.url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_process_whose_connection_is_closed_for_good_ends_with_70(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    # Too large for the server, which closes the connection: nats-py gives it up for good.
    body = """
    bus.nc.publish_now("a.b", "", b"x" * (bus.max_payload_bytes + 1))
    await asyncio.sleep(20)
    print("still here")
    """

    done = await asyncio.to_thread(run_child, nats_server, tmp_path, body)

    assert done.returncode == EXIT_CONNECTION_LOST == 70
    assert "still here" not in done.stdout


async def test_process_that_closes_its_connection_goes_on(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    body = """
    await bus.close()
    await asyncio.sleep(0.1)
    print("still here")
    """

    done = await asyncio.to_thread(run_child, nats_server, tmp_path, body)

    assert (done.returncode, done.stdout.strip()) == (0, "still here"), done.stderr
