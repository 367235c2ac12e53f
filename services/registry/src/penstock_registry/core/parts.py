"""Parts: what documents of several kinds are made of, and how lengths of time are written."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from penstock.contracts.durations import DURATION_FORMS, MAX_DURATION_SECONDS, parse_duration
from penstock.contracts.ids import TOKEN_PATTERN, Token
from penstock.contracts.plan import RetryPolicy
from penstock.contracts.usage import RunLimits

SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]


def read_duration(value: Any) -> Any:
    """Return the seconds of a duration in a document.

    Raises:
        PydanticCustomError: Not a duration, or out of range.
    """
    seconds = parse_duration(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise PydanticCustomError("duration", "not a duration", {"allowed": DURATION_FORMS})
    if not math.isfinite(seconds) or not 0 < seconds <= MAX_DURATION_SECONDS:
        raise PydanticCustomError("duration", "duration out of range", {"allowed": "> 0, <= 366d"})
    return float(seconds)


Duration = Annotated[
    float,
    BeforeValidator(read_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_DURATION_SECONDS},
                {"type": "string", "minLength": 1},
            ],
            "description": f"A duration: {DURATION_FORMS}.",
        }
    ),
]
"""A duration in seconds."""


class Part(BaseModel):
    """Base of every part of a document: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False)
    exactly_one: ClassVar[tuple[str, ...]] = ()
    """Fields, as users write them, of which a document gives exactly one."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """The fields among `exactly_one` that are given."""
        fields = type(self).model_fields.items()
        names = {field.alias or name: name for name, field in fields}
        return tuple(
            written for written in self.exactly_one if getattr(self, names[written]) is not None
        )


class RetrySpec(RetryPolicy):
    """When and how often a failed step is tried again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def policy(self) -> RetryPolicy:
        """Return it as plans carry it."""
        return RetryPolicy(**self.model_dump())


class LimitsSpec(Part):
    """Limits of a run; child runs share them."""

    max_turns: int | None = Field(default=None, ge=1, le=1000)
    """Turns of each agent."""
    max_steps: int | None = Field(default=None, ge=1)
    """Attempts at steps, those of child runs included."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of all models, in and out."""
    max_cost_usd: float | None = Field(default=None, ge=0)
    """Cost of all models."""
    max_depth: int | None = Field(default=None, ge=0, le=32)
    """How deep child runs may nest."""
    max_fan_out: int | None = Field(default=None, ge=1, le=10_000)
    """Items of one map, branches of one parallel step."""

    def limits(self) -> RunLimits:
        """Return them as plans carry them."""
        return RunLimits(**self.model_dump())


class ChildLimitsSpec(LimitsSpec):
    """Limits of a child run; it never gets more than is left of its parent's."""

    timeout_seconds: float | None = Field(default=None, gt=0, le=MAX_DURATION_SECONDS)
    """How long it may take."""


class SecretHeader(Part):
    """A header's value by reference; only the tool-runner ever sees the secret itself."""

    secret: SecretName
    """``NAME`` of the variable ``PENSTOCK_SECRET_NAME`` in the tool-runner's environment."""
    prefix: str = ""
    """Put before it, such as ``Bearer`` with a space."""


WrittenObject = dict[str, JsonValue]
"""A JSON object in a document. It is checked to be one, as YAML has values that JSON lacks."""
JsonSchema = WrittenObject
"""A JSON Schema (2020-12) in a document."""
GeneratedSchema = dict[str, Any]
"""A JSON Schema as pydantic generates it: nested to any depth, read by key."""


def _read_condition(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict) and value:
        return value
    if isinstance(value, str) and value.strip() and len(value) <= MAX_EXPRESSION:
        return value
    raise PydanticCustomError("condition", "not a condition", {"allowed": CONDITIONS})


MAX_EXPRESSION: Final = 10_000
"""Characters of one expression."""
CONDITIONS: Final = 'CEL text such as "input.total > 100", or an object with a JSONPath condition'

Condition = Annotated[
    JsonValue,
    BeforeValidator(_read_condition),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_EXPRESSION},
                {"type": "boolean"},
                {"type": "object", "minProperties": 1},
            ],
            "description": "CEL, or a JSONPath condition with an operator.",
        }
    ),
]
"""CEL, or JSONPath conditions with operators."""


def _read_selector(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and re.fullmatch(TOKEN_PATTERN, value):
        return int(value) if value.isdigit() and int(value) >= 1 else value
    raise PydanticCustomError(
        "selector", "not a version or alias", {"allowed": "a number from 1, or a name"}
    )


Selector = Annotated[
    int | str,
    PlainValidator(
        _read_selector,
        json_schema_input_type=Annotated[int, Field(ge=1)] | Token,
    ),
]
"""A version's number or an alias."""


def _read_wait(value: Any) -> Any:
    if value in ("all", "any") or (type(value) is int and 1 <= value <= 1000):
        return value
    raise PydanticCustomError(
        "wait", "not a number of branches", {"allowed": "all, any, 1 to 1000"}
    )


HowMany = Annotated[
    Literal["all", "any"] | int,
    PlainValidator(
        _read_wait,
        json_schema_input_type=Literal["all", "any"] | Annotated[int, Field(ge=1, le=1000)],
    ),
]
"""How many branches must succeed."""


def _read_time(value: Any) -> Any:
    if isinstance(value, str) and "{{" in value:
        return value
    return read_duration(value)


DurationOrTemplate = Annotated[
    float | str,
    PlainValidator(_read_time, json_schema_input_type=Annotated[float, Field(gt=0)] | str),
]
"""A duration in seconds, or a template that gives one."""
