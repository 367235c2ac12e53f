"""Failpoints: named moments between two effects at which a test may kill the process.

Each stands where a crash leaves something half done. They cost one look at an empty dictionary
unless ``PENSTOCK_FAILPOINTS`` arms some: ``engine.decided=3`` kills the process with SIGKILL the
third time that it passes there, ``engine.decided=3x20`` kills twenty processes so, one after the
other; these are counted in the file that ``PENSTOCK_FAILPOINTS_TALLY`` names, a line for each.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "PENSTOCK_FAILPOINTS"
TALLY: Final = "PENSTOCK_FAILPOINTS_TALLY"

NAMES: Final = (
    "engine.input_taken",
    "engine.decided",
    "engine.decision_stored",
    "engine.timers_set",
    "engine.pending_indexed",
    "engine.step_performed",
    "engine.child_started",
    "engine.message_sent",
    "engine.parent_notified",
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


_FORM: Final = re.compile(r"(?P<name>[a-z_.]+)(=(?P<passes>[0-9]+)(x(?P<times>[0-9]+))?)?")


def _armed(text: str, tally: str) -> dict[str, int]:
    """Return after how many passes the process ends at each failpoint that is armed."""
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        arming = _FORM.fullmatch(part)
        if arming is None or arming["name"] not in NAMES:
            raise SystemExit(
                f"{VARIABLE}: {part!r} is not a failpoint; allowed: NAME, NAME=PASSES or"
                f" NAME=PASSESxTIMES with NAME one of {', '.join(NAMES)}"
            )
        name, times = arming["name"], arming["times"]
        if times is None or kills(tally).get(name, 0) < int(times):
            found[name] = int(arming["passes"] or "1")
    return found


def kills(tally: str) -> dict[str, int]:
    """Return how many processes have ended at each failpoint, by the tally's file."""
    found: dict[str, int] = {}
    if tally and os.path.exists(tally):  # noqa: PTH110 - pathlib is not loaded for this
        with open(tally, encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                found[line.strip()] = found.get(line.strip(), 0) + 1
    return found


_tally: Final = os.environ.get(TALLY, "")
_left: Final = _armed(os.environ.get(VARIABLE, ""), _tally)


def _pass(name: str) -> None:
    """Pass a failpoint; the process ends here if it is armed and this is its pass."""
    if name not in _left:
        return
    _left[name] -= 1
    if _left[name] <= 0:
        if _tally:
            with open(_tally, "a", encoding="ascii") as file:  # noqa: PTH123
                file.write(f"{name}\n")
        os.kill(os.getpid(), signal.SIGKILL)


# Without armed failpoints nothing of this module runs: one look at the empty dictionary.
reach: Final[Callable[[str], object]] = _pass if _left else _left.get
