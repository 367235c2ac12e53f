"""The bus: connection, topology, log writer and reader, consumer, buckets, claim check.

The only package that speaks to NATS. What it does not hide: streams, consumers, sequences.
"""

import sys

if "aiohttp" not in sys.modules and "nats" not in sys.modules:
    # For WebSockets, which the bus does not use, nats-py imports aiohttp wherever it happens to
    # be installed: 0.1 s and 9 MB in every process. An entry of None makes that import fail.
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        import nats.aio.client  # noqa: F401
    finally:
        del sys.modules["aiohttp"]
