"""A durable server stages batches in memory, and loses nothing by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from penstock.bus.claims import Claims
from penstock.bus.connection import connect
from penstock.bus.reader import LogReader
from penstock.bus.topology import ensure
from penstock.bus.writer import LogWriter, Record
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings
from penstock.staging import memory_folder


async def _append_batch(server: NatsServer, names: list[str]) -> list[str]:
    """Append a batch; return the subjects of all that the stream holds."""
    settings = CoreSettings(nats_url=server.url)
    bus = await connect(settings, name="staging")
    await ensure(bus, settings)
    claims = Claims(bus, settings.claim_threshold_bytes)
    writer = await LogWriter(bus, settings, claims).start()
    writer.cost.slow, writer.cost.single = True, 1.0
    await writer.append_all([Record(f"run.t.0.R.in.signal.{name}", b"{}") for name in names])
    stored = await LogReader(bus, claims).stored("t", 0, "R")
    await writer.close()
    await bus.close()
    return [message.subject.rsplit(".", 1)[1] for message in stored]


async def test_batches_of_a_durable_server_survive_kills_though_staged_in_memory(
    create_nats_server: Callable[..., NatsServer],
) -> None:
    server = create_nats_server(durable=True)
    store = Path(server.log_file).parent / "store"
    batches = store / "jetstream" / "$G" / "streams" / "RUNS" / "batches"

    assert await _append_batch(server, ["a", "b", "c"]) == ["a", "b", "c"]
    assert batches.resolve() == memory_folder(store)
    server.kill()
    assert not memory_folder(store).exists()
    server.start()
    assert batches.resolve() == memory_folder(store)
    assert await _append_batch(server, ["d", "e"]) == ["a", "b", "c", "d", "e"]
    server.restart()
    assert await _append_batch(server, ["f", "g"]) == ["a", "b", "c", "d", "e", "f", "g"]
