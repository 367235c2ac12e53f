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

__all__ = ["Json"]
