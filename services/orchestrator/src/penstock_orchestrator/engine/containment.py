"""Work on one run: an error that the run causes is kept from all other runs."""

from __future__ import annotations

from functools import partial
from typing import Final

from nats.errors import Error as NatsError

from penstock.bus.connection import JetStreamError
from penstock.containment import Containment
from penstock.contracts.errors import ConflictError, TransientError

OF_THE_BUS: Final = (TransientError, ConflictError, JetStreamError, NatsError, OSError)
"""Errors that say nothing about the run: its input is delivered again."""


contained: Final = partial(Containment, Exception, passing=OF_THE_BUS)
"""Returns a block around work on one run; errors of the bus and cancellation pass."""
