"""Frozen structs for everything that the log holds, and their one bridge to pydantic.

Facts and their parts are read and written by msgspec. Readers ignore unknown fields, writers omit
fields that hold their default. The same structs are fields of pydantic models (views, plans,
requests, replies), which validate them with msgspec and write them in full (ADR 0021).
"""

from __future__ import annotations

import functools
import inspect
import math
from datetime import datetime
from typing import Annotated, Final, TypeVar, dataclass_transform

import msgspec
from msgspec import Meta
from pydantic import AwareDatetime, Field, GetCoreSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, core_schema

from penstock.contracts.json import Json

TAG_FIELD: Final = "type"

Instant = Annotated[datetime, Meta(tz=True), AwareDatetime]
"""A point in time with its offset, UTC wherever Penstock itself writes it."""
Count = Annotated[int, Meta(ge=0), Field(ge=0)]
"""A whole number, zero or more."""
PositiveCount = Annotated[int, Meta(ge=1), Field(ge=1)]
"""A whole number, one or more."""
Amount = Annotated[float, Meta(ge=0), Field(ge=0)]
"""A finite number, zero or more."""
PositiveSeconds = Annotated[float, Meta(gt=0), Field(gt=0)]
"""A finite duration in seconds, longer than none."""


class MalformedError(ValueError):
    """JSON or plain values do not form the struct, or the struct has no JSON form."""


class _WireStructMeta(msgspec.StructMeta):
    """Makes every wire struct frozen, keyword-only and free of default values in its JSON."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, object],
        *,
        tag: str | None = None,
        frozen: bool = True,
    ) -> _WireStructMeta:
        return super().__new__(
            mcls,
            name,
            bases,
            namespace,
            frozen=frozen,
            kw_only=True,
            omit_defaults=True,
            tag=tag,
            tag_field=None if tag is None else TAG_FIELD,
        )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class WireStruct(msgspec.Struct, frozen=True, metaclass=_WireStructMeta):
    """Base of the structs on the wire: frozen, keyword-only, unknown fields ignored.

    A member of a union names its ``type``: ``class X(WireStruct, tag="x")``.
    """

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Let pydantic models have this struct as a field; msgspec validates it."""
        fields = {
            field.encode_name: core_schema.typed_dict_field(
                _with_default(field, handler.generate_schema(field.type)), required=field.required
            )
            for field in msgspec.structs.fields(cls)
        }
        tag = tag_of(cls)
        if tag is not None:
            literal = core_schema.typed_dict_field(core_schema.literal_schema([tag]))
            fields = {TAG_FIELD: literal, **fields}
        # The shape below is only described: the wrapper never calls its handler.
        return core_schema.no_info_wrap_validator_function(
            functools.partial(_validated, cls),
            core_schema.typed_dict_schema(
                fields,
                metadata={
                    "pydantic_js_updates": {
                        "title": cls.__name__,
                        "description": inspect.cleandoc(cls.__doc__ or ""),
                    }
                },
            ),
            ref=f"{cls.__module__}.{cls.__qualname__}:{id(cls)}",
            serialization=core_schema.plain_serializer_function_ser_schema(
                _serialized, info_arg=True
            ),
        )


StructT = TypeVar("StructT", bound=WireStruct)


def tag_of(cls: type[WireStruct]) -> str | None:
    """Return the value of ``type`` in a struct's JSON; ``None`` if it has none."""
    tag = cls.__struct_config__.tag
    return tag if isinstance(tag, str) else None


def encode(struct: WireStruct) -> bytes:
    """Return a struct as JSON, without the fields that hold their default.

    Raises:
        MalformedError: A value in it has no JSON form, such as NaN or a lone surrogate.
    """
    try:
        body = msgspec.json.encode(struct)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedError(str(error)) from error
    if b"null" in body:  # msgspec writes NaN and infinity as null
        _require_finite(struct, "$")
    return body


def decode(cls: type[StructT], body: bytes | str) -> StructT:
    """Read a struct from JSON.

    Raises:
        MalformedError: It is not valid; the message names the path.
    """
    try:
        return msgspec.json.decode(body, type=cls)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(str(error)) from error


def convert(cls: type[StructT], value: object) -> StructT:
    """Build a struct from plain dictionaries and lists.

    Raises:
        MalformedError: They are not valid; the message names the path.
    """
    try:
        found = msgspec.convert(value, cls)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedError(str(error)) from error
    _require_finite(found, "$")
    return found


_SCALARS: Final = frozenset({bool, float, int, str, type(None)})


def in_full(value: object) -> object:
    """Return a struct as plain dictionaries and lists, with all its fields."""
    if isinstance(value, WireStruct):
        fields = {
            name: item if type(item) in _SCALARS else in_full(item)
            for name, item in msgspec.structs.asdict(value).items()
        }
        tag = value.__struct_config__.tag
        return fields if tag is None else {TAG_FIELD: tag, **fields}
    if isinstance(value, dict):
        return {key: in_full(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_full(item) for item in value]
    return value


def plain(struct: WireStruct, *, defaults: bool = True) -> dict[str, Json]:
    """Return a struct as a JSON object of plain values.

    Args:
        struct: Any struct.
        defaults: Whether fields that hold their default appear as well.
    """
    found: dict[str, Json] = msgspec.json.decode(
        msgspec.json.encode(in_full(struct) if defaults else struct)
    )
    return found


def _with_default(field: msgspec.structs.FieldInfo, schema: CoreSchema) -> CoreSchema:
    if field.default is not msgspec.NODEFAULT:
        default = field.default
    elif field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    else:
        return schema
    return core_schema.with_default_schema(schema, default=msgspec.to_builtins(in_full(default)))


def _validated(cls: type[WireStruct], value: object, _: object) -> WireStruct:
    return value if isinstance(value, cls) else convert(cls, value)


def _serialized(value: object, info: SerializationInfo) -> object:
    if info.exclude_defaults:
        return msgspec.to_builtins(value)
    found = in_full(value)
    return msgspec.to_builtins(found) if info.mode == "json" else found


def _require_finite(value: object, path: str) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MalformedError(f"Expected a finite number, got `{value}` - at `{path}`")
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _require_finite(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_finite(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_finite(item, f"{path}[{index}]")
