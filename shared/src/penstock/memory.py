"""Memory of a long-running service: the garbage collector skips objects made at the start."""

from __future__ import annotations

import gc


def settle() -> None:
    """Exempt what lives now from garbage collection, and collect less often.

    Called once when a service is ready. Modules and models live for ever, and messages die by
    reference counting: the collector would only walk through them, again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
