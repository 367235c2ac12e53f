import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import nats
import pytest
from nats.js.api import StreamConfig

from penstock.contracts.errors import RejectedError, TransientError
from penstock.embedded import NatsServer

CreateNatsServer = Callable[..., NatsServer]


async def test_start_on_free_port_serves_jetstream(create_nats_server: CreateNatsServer) -> None:
    server = create_nats_server(monitor_port=0)

    client = await nats.connect(server.url)
    account = await client.jetstream().account_info()
    await client.close()
    async with httpx.AsyncClient() as http:
        state = (await http.get(f"{server.monitor_url}/jsz")).json()

    assert server.running
    assert account.streams == 0
    assert state["config"].get("sync_always", False) is False


@pytest.mark.parametrize(
    "name", ["Bücher ✓", 'a "b" c', "$HOME {x} # y", "back\\slash", "new\nline"]
)
def test_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    with NatsServer(tmp_path / name) as server:
        assert server.running

    assert (tmp_path / name / "store" / "jetstream").is_dir()


async def test_start_durable_flushes_every_message(create_nats_server: CreateNatsServer) -> None:
    server = create_nats_server(durable=True, monitor_port=0)

    async with httpx.AsyncClient() as http:
        state = (await http.get(f"{server.monitor_url}/jsz")).json()

    assert state["config"]["sync_always"] is True


@pytest.mark.parametrize("crash", [True, False])
async def test_restart_keeps_port_and_messages(
    create_nats_server: CreateNatsServer, crash: bool
) -> None:
    server = create_nats_server()
    port = server.port
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(StreamConfig(name="S", subjects=["s.>"]))
    await client.jetstream().publish("s.1", b"kept")
    await client.close()

    if crash:
        server.kill()
        assert not server.running
        server.start()
    else:
        server.restart()

    client = await nats.connect(server.url)
    message = await client.jetstream().get_msg("S", 1)
    await client.close()
    assert server.port == port
    assert message.data == b"kept"


def test_start_with_port_taken_is_rejected_and_says_why(
    create_nats_server: CreateNatsServer, tmp_path: Path
) -> None:
    taken = create_nats_server().port

    with pytest.raises(RejectedError, match="address already in use") as caught:
        NatsServer(tmp_path, port=taken).start()

    assert caught.value.code == "nats_server_failed"


def test_start_in_a_directory_in_use_is_rejected_until_its_server_ends(tmp_path: Path) -> None:
    with NatsServer(tmp_path):
        with pytest.raises(RejectedError) as caught:
            NatsServer(tmp_path).start()
        assert caught.value.code == "nats_server_running"

    with NatsServer(tmp_path) as second:
        assert second.running


def test_start_not_ready_in_time_is_transient_and_leaves_nothing(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)

    with pytest.raises(TransientError):
        server.start(within=0)

    assert not server.running


def test_stop_of_a_frozen_server_ends_it_by_force(create_nats_server: CreateNatsServer) -> None:
    server = create_nats_server()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)

    server.stop(within=0.1)

    assert not server.running
    assert server.pid is None
