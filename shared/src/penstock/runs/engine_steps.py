"""Configuration of the steps that the engine executes itself, as ``StepScheduled`` carries it."""

from __future__ import annotations

from penstock.contracts.facts import DefinitionKind
from penstock.contracts.json import Json
from penstock.contracts.structs import WireStruct
from penstock.contracts.usage import RunLimits


class ChildRunConfig(WireStruct):
    """Configuration of a step that is a child run."""

    name: str
    kind: DefinitionKind
    version: int
    plan_digest: str
    depth: int
    """Number of runs above it."""
    limits: RunLimits = RunLimits()


class SendTarget(WireStruct):
    """Receiver of a message: the first field that is set counts. Values are rendered templates."""

    run_id: Json = None
    correlation: Json = None
    session_id: Json = None


class SendConfig(WireStruct):
    """Configuration of a step that sends a message."""

    to: SendTarget
    name: str
