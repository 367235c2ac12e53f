"""Failpoints: named moments between two effects at which a test may kill the process.

Each stands where a crash leaves something half done. They cost one look at an empty dictionary
unless ``PENSTOCK_FAILPOINTS`` arms some: ``engine.decided=3`` kills the process with SIGKILL the
third time that it passes there.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "PENSTOCK_FAILPOINTS"

NAMES: Final = (
    "engine.input_taken",
    "engine.decided",
    "engine.decision_stored",
    "engine.timers_set",
    "engine.parked_indexed",
    "engine.step_performed",
    "engine.child_started",
    "engine.message_sent",
    "engine.parent_told",
    "engine.run_finished",
    "engine.before_ack",
    "runner.step_taken",
    "runner.handler_done",
    "runner.result_stored",
    "gateway.before_invoke",
    "gateway.invoke_stored",
    "gateway.signal_stored",
    "projector.batch_read",
    "projector.batch_stored",
    "schedule.run_fired",
)
"""Every failpoint there is."""


def _armed(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, count = part.partition("=")
        if name not in NAMES or not (count or "1").isdigit():
            raise SystemExit(
                f"{VARIABLE}: {part!r} is no failpoint; allowed: NAME or NAME=COUNT with NAME one"
                f" of {', '.join(NAMES)}"
            )
        found[name] = int(count or "1")
    return found


_left: Final = _armed(os.environ.get(VARIABLE, ""))


def reach(name: str) -> None:
    """Pass a failpoint; the process ends here if it is armed and its turn has come."""
    if not _left or name not in _left:
        return
    _left[name] -= 1
    if _left[name] <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
