"""Handlers: a function, the input that its signature declares, and how it is called.

The signature is read once, when the handler is registered; the JSON Schema that follows from it
is what the runner advertises, and the input is validated against it before the function runs.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import field, is_dataclass, make_dataclass
from functools import partial
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic.config import ExtraValues
from pydantic_core import PydanticSerializationError, to_jsonable_python

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.json import JsonObject
from penstock.contracts.runners import Capability
from penstock.runner.attempt import invalid_arguments
from penstock.runner.context import StepContext

Function = Callable[..., Any]
Prepare = Callable[[str, JsonValue], tuple[tuple[Any, ...], Mapping[str, Any]]]

_CONTEXT_NAMES: Final = ("ctx", "context")
_NOTHING: Final[Mapping[str, Any]] = {}


class Handler:
    """A registered function."""

    __slots__ = ("_context_first", "_prepare", "capability", "function", "is_async", "name")

    def __init__(
        self,
        name: str,
        function: Function,
        *,
        description: str | None = None,
        parameters: Mapping[str, JsonValue] | None = None,
        closed: bool = True,
        whole: bool = False,
    ) -> None:
        """Read the function's signature.

        Args:
            name: Name of the agent or tool; any for a catch-all.
            function: Plain (it will run in a thread) or async.
            description: What it does; the docstring's first line if not given.
            parameters: JSON Schema to advertise instead of the derived one.
            closed: Whether arguments that the function does not have are refused.
            whole: Whether its one parameter besides the context takes the whole input.

        Raises:
            TypeError: Its signature cannot be called with named arguments.
        """
        self.name = name
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        hints = typing.get_type_hints(function, include_extras=True)
        inputs = list(inspect.signature(function).parameters.values())
        self._context_first = bool(inputs) and _is_context(inputs[0], hints)
        if self._context_first:
            inputs = inputs[1:]
        self._prepare, schema = _reader(name, inputs, hints, closed=closed, whole=whole)
        doc = (inspect.getdoc(function) or "").strip().partition("\n")[0]
        self.capability = Capability(
            name=name,
            description=doc if description is None else description,
            parameters=dict(parameters) if parameters is not None else schema,
        )

    def arguments(
        self, ctx: StepContext, name: str, value: JsonValue
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return how the function is to be called for an input.

        Args:
            ctx: The step.
            name: Of the agent or tool, for errors; a catch-all has many.
            value: The input.

        Raises:
            RejectedError: ``invalid_arguments`` with the paths of all that is wrong.
        """
        positional, named = self._prepare(name, value)
        return ((ctx, *positional) if self._context_first else positional), named


def _is_context(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> bool:
    hint = hints.get(parameter.name)
    return hint is StepContext or (hint is None and parameter.name in _CONTEXT_NAMES)


def _reader(
    name: str,
    inputs: list[inspect.Parameter],
    hints: Mapping[str, Any],
    *,
    closed: bool,
    whole: bool,
) -> tuple[Prepare, JsonObject]:
    """Return what turns an input into arguments, and the schema of the inputs that it takes."""
    if len(inputs) == 1 and (whole or _is_record(hints.get(inputs[0].name))):
        return _whole(hints.get(inputs[0].name, JsonValue))
    open_ended = [item for item in inputs if item.kind is inspect.Parameter.VAR_KEYWORD]
    if open_ended and len(inputs) == 1:
        return _open(), {"type": "object"}
    for item in inputs:
        if item.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise TypeError(f"handler of {name!r}: parameter {item.name!r} has no name to call by")
    return _named(name, inputs, hints, closed=closed)


def _is_record(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return isinstance(hint, type) and (
        issubclass(hint, BaseModel) or is_dataclass(hint) or typing.is_typeddict(hint)
    )


def _whole(hint: Any) -> tuple[Prepare, JsonObject]:
    if hint is JsonValue or hint is Any:
        # It was read from JSON; there is nothing to check.
        return lambda _, value: ((value,), _NOTHING), {}
    adapter: TypeAdapter[Any] = TypeAdapter(hint)

    def prepare(name: str, value: JsonValue) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        try:
            return (adapter.validate_python({} if value is None else value),), _NOTHING
        except ValidationError as error:
            raise invalid_arguments(name, error) from error

    return prepare, adapter.json_schema()


def _open() -> Prepare:
    def prepare(name: str, value: JsonValue) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if value is None:
            return (), _NOTHING
        if not isinstance(value, dict):
            raise RejectedError(
                "invalid_arguments",
                f"{name}: the arguments must be an object",
                details=(ErrorDetail(path="", message="not an object", allowed="object"),),
            )
        return (), value

    return prepare


def _named(
    name: str, inputs: list[inspect.Parameter], hints: Mapping[str, Any], *, closed: bool
) -> tuple[Prepare, JsonObject]:
    """Read the input's members as the function's named parameters."""
    extra: ExtraValues = "forbid" if closed else "ignore"
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for item in inputs:
        hint = hints.get(item.name, Any)
        if item.kind is inspect.Parameter.VAR_KEYWORD:
            extra = "allow"
        elif item.default is inspect.Parameter.empty:
            fields.append((item.name, hint))
        else:
            fields.append((item.name, hint, field(default_factory=partial(deepcopy, item.default))))
    from pydantic.dataclasses import dataclass as pydantic_dataclass  # noqa: PLC0415 - heavy

    record = make_dataclass(f"{name}_arguments", fields, kw_only=True)
    adapter: TypeAdapter[Any] = TypeAdapter(
        pydantic_dataclass(record, config=ConfigDict(extra=extra, title=name))
    )
    validate = adapter.validator.validate_python

    def prepare(called: str, value: JsonValue) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        try:
            return (), validate({} if value is None else value).__dict__
        except ValidationError as error:
            raise invalid_arguments(called, error) from error

    schema = adapter.json_schema()
    # Titles made from names carry no information for a model.
    schema.pop("title", None)
    for described in schema.get("properties", {}).values():
        described.pop("title", None)
    defaults = {
        item.name: item.default for item in inputs if item.default is not inspect.Parameter.empty
    }
    for key, value in defaults.items():
        with suppress(PydanticSerializationError):
            schema["properties"][key]["default"] = to_jsonable_python(value)
    return prepare, schema
