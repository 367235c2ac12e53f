"""What Schemathesis has to know of the API beyond its OpenAPI document."""

from __future__ import annotations

import schemathesis


def _lines(_context: object, value: object) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


schemathesis.serializer("application/x-ndjson")(_lines)
