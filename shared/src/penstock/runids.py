"""New run ids: the one place where randomness and the clock make an id."""

from __future__ import annotations

import os
import time

from penstock.contracts.ids import run_id_from


def new_run_id() -> str:
    """Return a fresh, time-ordered run id."""
    return run_id_from(time.time_ns() // 1_000_000, os.urandom(10))
