"""A sink's process: a durable consumer of ended runs and its handler."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from typing import Final

from penstock.bus import topology
from penstock.bus.claims import Claims
from penstock.bus.connection import connect
from penstock.bus.consumer import Consumer, Delivery
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, RejectedError, TransientError
from penstock.runs.state import Entry
from penstock.settings import CoreSettings
from penstock.sinks.mlflow import Mlflow, MlflowRun
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

_SECOND: Final = 1_000_000_000
_LONGEST_DELAY_SECONDS: Final = 30.0
_CONCURRENCY: Final = 4


class MlflowSink:
    """Writes each run that ends to MLflow."""

    def __init__(self, reader: LogReader, mlflow: Mlflow, *, only_tenant: str | None) -> None:
        """Use the process's reader and client.

        Args:
            reader: Reads runs from the log.
            mlflow: Where they go.
            only_tenant: Leave out all other tenants.
        """
        self._reader = reader
        self._mlflow = mlflow
        self._only_tenant = only_tenant

    async def on_end(self, delivery: Delivery) -> None:
        """Write the run whose end was delivered; an absent MLflow is waited for.

        Raises:
            RejectedError: MLflow refuses it.
            InvariantError: The message is no end.
        """
        try:
            subject = subjects.parse_fact(delivery.subject)
        except ValueError as error:
            raise InvariantError("unreadable_subject", str(error)) from error
        if self._only_tenant not in (None, subject.tenant):
            return
        entries = await self._reader.read_run(
            subject.tenant,
            subject.shard,
            subject.run_id,
            at_least_seq=delivery.stream_seq,
        )
        run = _readable(entries)
        if run is None:
            log.warning("sink.run_incomplete", run_id=subject.run_id)
            return
        delay = 1.0
        while True:
            try:
                written = await self._mlflow.write(run)
            except TransientError as error:
                # Not given back: the bus would give it up after so many deliveries.
                log.warning("sink.waiting", code=error.code, reason=error.message)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
            else:
                log.info("sink.run_written" if written else "sink.run_known", run_id=run.run_id)
                return


def _readable(entries: Sequence[Entry]) -> MlflowRun | None:
    """Return the run, or ``None`` where it was deleted or is too old to be whole."""
    try:
        return MlflowRun(entries)
    except RejectedError:
        return None


async def run_mlflow_sink(
    settings: CoreSettings,
    *,
    url: str,
    experiment: str,
    name: str = "mlflow",
    token: str | None = None,
    only_tenant: str | None = None,
    until: asyncio.Event | None = None,
) -> None:
    """Write ended runs to MLflow until SIGTERM or SIGINT, or until ``until`` is set.

    Args:
        settings: Where the bus is.
        url: Of the tracking server.
        experiment: Name of the experiment.
        name: Of the sink; two sinks of one name share the runs, others get each run as well.
        token: Bearer token of the tracking server.
        only_tenant: Leave out all other tenants.
        until: Stands for the signals, in tests.
    """
    ending = until if until is not None else asyncio.Event()
    if until is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
    bus = await connect(settings, name=f"sink {name} {settings.instance_id}")
    durable = subjects.sink_consumer(name)
    config: topology.ConsumerConfig = {
        "durable_name": durable,
        "filter_subject": subjects.ENDS,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": int(settings.ack_wait_seconds * _SECOND),
        "max_deliver": -1,
        "max_ack_pending": topology.MAX_ACK_PENDING,
    }

    async def ensure() -> None:
        await topology.ensure_consumer(bus, subjects.RUNS, config)

    mlflow = Mlflow(url, experiment, token=token)
    try:
        await topology.ensure(bus, settings)
        await ensure()
        reader = LogReader(bus, Claims(bus, settings.claim_threshold_bytes))
        consumer = Consumer(
            bus,
            subjects.RUNS,
            durable,
            MlflowSink(reader, mlflow, only_tenant=only_tenant).on_end,
            concurrency=_CONCURRENCY,
            ack_wait_seconds=settings.ack_wait_seconds,
            recreate=ensure,
        )
        await consumer.start()
        log.info("sink.ready", url=url, experiment=experiment)
        await ending.wait()
        await consumer.drain(grace_seconds=5)
    finally:
        await mlflow.close()
        await bus.close()
