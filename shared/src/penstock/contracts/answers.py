"""Answers to pending requests: the payload of the signal that answers an open node record.

Senders write them with ``payload``; ``parse`` reads leniently, for a signal may come from any
client: other forms count as a rejection, as a result without output, or as a failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.contracts.json import Json


def _fields(payload: Json) -> dict[str, Json]:
    return payload if isinstance(payload, dict) else {}


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class ApprovalAnswer:
    """The decision about an approval."""

    decision: Literal["approve", "reject"]
    reason: str | None = None
    by: str | None = None
    """Id of the API key that decided."""

    @classmethod
    def parse(cls, payload: Json) -> ApprovalAnswer:
        """Read the payload of a signal; anything but ``approve`` rejects."""
        fields = _fields(payload)
        reason, by = _text(fields.get("reason")), _text(fields.get("by"))
        approved = fields.get("decision") == "approve"
        return cls("approve" if approved else "reject", reason, by)

    def payload(self) -> dict[str, Json]:
        """Return the payload of the signal."""
        return {"decision": self.decision, "reason": self.reason, "by": self.by}


@dataclass(frozen=True, slots=True)
class ToolError:
    """The error of a tool that the caller of the run executed."""

    code: str = "client_tool_failed"
    message: str = "the caller's tool failed"


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """The result of a tool that the caller of the run executed."""

    output: Json = None
    error: ToolError | None = None

    @classmethod
    def parse(cls, payload: Json) -> ToolAnswer:
        """Read the payload of a signal; only ``status: failed`` makes it an error."""
        fields = _fields(payload)
        if fields.get("status") != "failed":
            return cls(fields.get("output"))
        error = _fields(fields.get("error"))
        default = ToolError()
        code, message = error.get("code"), error.get("message")
        return cls(None, ToolError(str(code or default.code), str(message or default.message)))

    def payload(self) -> dict[str, Json]:
        """Return the payload of the signal."""
        if self.error is None:
            return {"status": "succeeded", "output": self.output}
        error: dict[str, Json] = {"code": self.error.code, "message": self.error.message}
        return {"status": "failed", "error": error}


@dataclass(frozen=True, slots=True)
class ResolutionAnswer:
    """The decision about a lost attempt: run it again, or record it as succeeded or failed."""

    action: Literal["retry", "succeed", "fail"]
    output: Json = None
    reason: str | None = None
    by: str | None = None
    """Id of the API key that decided."""

    @classmethod
    def parse(cls, payload: Json) -> ResolutionAnswer:
        """Read the payload of a signal; an unknown action fails the step."""
        fields = _fields(payload)
        given = fields.get("action")
        action: Literal["retry", "succeed", "fail"] = "fail"
        if given == "retry":
            action = "retry"
        elif given == "succeed":
            action = "succeed"
        reason, by = _text(fields.get("reason")), _text(fields.get("by"))
        return cls(action, fields.get("output"), reason, by)

    def payload(self) -> dict[str, Json]:
        """Return the payload of the signal."""
        return {
            "action": self.action,
            "output": self.output,
            "reason": self.reason,
            "by": self.by,
        }
