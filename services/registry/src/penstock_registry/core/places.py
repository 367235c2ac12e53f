"""Places in documents, and the error that names the fault and its place."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.contracts.errors import ErrorDetail, RejectedError


def invalid_document(details: Iterable[ErrorDetail]) -> RejectedError:
    """Return the error with all findings about some documents."""
    found = tuple(details)
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return RejectedError("invalid_document", f"{first.path}: {first.message}{more}", details=found)


def at(prefix: str, path: str) -> str:
    """Return the place ``path`` inside the place ``prefix``."""
    if not prefix or not path:
        return prefix or path
    return f"{prefix}{path}" if path.startswith("[") else f"{prefix}.{path}"


def show_location(parts: Iterable[str | int]) -> str:
    """Write a place as ``spec.steps[0].id``."""
    text = ""
    for part in parts:
        text = at(text, f"[{part}]" if isinstance(part, int) else part)
    return text
