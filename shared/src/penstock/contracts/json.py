"""Any JSON value, without a second look.

What a fact or a plan carries for its users has been read from JSON already; pydantic's own
``JsonValue`` would walk through it again in Python code, node by node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import JsonValue as Json
else:
    Json = Any

__all__ = ["Json", "JsonObject"]

JsonObject = dict[str, Json]
"""A JSON object whose members only its author knows: a document, arguments, a JSON Schema, the
parameters of a model. Code passes it on and looks at no more than single members."""
