"""What all runners of a process share: the bus, the log, secrets, limits, stop requests."""

from __future__ import annotations

import os
from collections.abc import Mapping

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.bus.restore import Restorer
from penstock.bus.topology import ensure
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.runner.limit_stores import BucketStore, RedisStore
from penstock.runner.limits import Limits
from penstock.runner.rates import read_rules
from penstock.runner.secrets import Secrets
from penstock.runner.settings import RunnerSettings
from penstock.runner.stops import StopBook


class Harness:
    """Open it once per process; the caller closes the bus."""

    def __init__(
        self, bus: Bus, settings: RunnerSettings, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Prepare the harness; ``open`` it.

        Args:
            bus: An open connection.
            settings: Of the process.
            environment: Where secrets are found.

        Raises:
            RejectedError: ``redis_not_installed`` or ``invalid_redis_url``.
        """
        self.bus = bus
        self.settings = settings
        self.claims = Claims(bus, settings.claim_threshold_bytes)
        self.reader = LogReader(bus, self.claims)
        self.writer = LogWriter(bus, settings, self.claims)
        self.stops = StopBook()
        self.secrets = Secrets(environment)
        url = settings.redis_url
        store = BucketStore(bus) if url is None else RedisStore(url.get_secret_value())
        self.limits = Limits(bus, read_rules(settings.rate_limits), store)
        self._restorer = Restorer(bus, settings)

    async def open(self) -> Harness:
        """Make sure that the bus has what runners need, and begin to listen.

        Raises:
            InvariantError: ``topology_differs``.
            TransientError: The bus does not answer.
        """
        await ensure(self.bus, self.settings)
        self._restorer.start()
        await self.bus.subscribe(subjects.STOP_SPACE, self.stops.on_message)
        await self.limits.open()
        await self.writer.start()
        return self

    async def close(self) -> None:
        """Wait until everything appended is acknowledged."""
        self._restorer.stop()
        await self.limits.close()
        await self.writer.close()
