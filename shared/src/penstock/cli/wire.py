"""The bus for commands: connect, do the work, errors as errors of a command."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

from nats.errors import Error as NatsError
from pydantic import ValidationError

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, JetStreamError, connect
from penstock.bus.reader import LogReader
from penstock.cli.failure import FAILED, MISUSED, CommandError, Finding
from penstock.contracts.errors import PenstockError, RejectedError
from penstock.settings import CoreSettings
from penstock.target import Target

CONNECT_SECONDS: Final = 3.0

T = TypeVar("T")


class Wire(NamedTuple):
    """An open bus with its reader and settings."""

    bus: Bus
    reader: LogReader
    settings: CoreSettings


def on_wire(target: Target, work: Callable[[Wire], Awaitable[T]]) -> T:
    """Connect, run ``work``, disconnect, and return its result.

    Raises:
        CommandError: The bus cannot be reached, or the work failed as a service would.
    """
    # Log lines of the clients would interleave with the output.
    logging.getLogger("penstock").setLevel(logging.CRITICAL)
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(_run(target, work))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CommandError(f"settings: {place}: {first['msg']}", exit_code=MISUSED) from error
    except PenstockError as error:
        raise command_error(error) from error
    except (JetStreamError, NatsError, OSError) as error:
        raise CommandError(f"the bus at {target.nats_url}: {error}") from error


async def _run(target: Target, work: Callable[[Wire], Awaitable[T]]) -> T:
    settings = CoreSettings(nats_url=target.nats_url, data_dir=target.data_dir)
    bus = await connect(settings, name="penstock-cli", patience_seconds=CONNECT_SECONDS)
    try:
        reader = LogReader(bus, Claims(bus, settings.claim_threshold_bytes))
        return await work(Wire(bus, reader, settings))
    finally:
        await bus.close()


def command_error(error: PenstockError) -> CommandError:
    """Return an error of Penstock as an error of a command."""
    findings = tuple(Finding(found.path, found.message, found.allowed) for found in error.details)
    return CommandError(
        f"{error.message} [{error.code}]",
        findings=findings,
        exit_code=MISUSED if isinstance(error, RejectedError) else FAILED,
    )
