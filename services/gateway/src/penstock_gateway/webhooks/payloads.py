"""Payloads of deliveries: JSON, forms and text."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs

from pydantic_core import from_json

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.json import Json
from penstock_gateway.raw import is_json, media_type

MAX_FORM_FIELDS: Final = 1000

_FORM: Final = "application/x-www-form-urlencoded"


def read_payload(content_type: str, body: bytes) -> Json:
    """Return the payload of a delivery.

    A body declared as JSON must be JSON. A form becomes an object of its fields, a repeated field
    a list; a form with the single field ``payload`` is the JSON in it (GitHub, Slack). Any other
    body is JSON if it can be read so, else text.

    Raises:
        RejectedError: ``malformed_json``, ``malformed_request`` or ``unsupported_media_type``.
    """
    form = media_type(content_type)
    if form == _FORM:
        return _form(body)
    try:
        payload: Json = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if is_json(form):
            raise RejectedError(
                "malformed_json",
                "the body is not JSON",
                details=(finding("body", str(error)[:200], "JSON"),),
            ) from error
        return _text(body)
    return payload


def _form(body: bytes) -> Json:
    try:
        fields = parse_qs(
            _text(body), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS, errors="strict"
        )
    except ValueError as error:
        raise RejectedError(
            "malformed_request",
            "the body is not a form",
            details=(finding("body", str(error)[:200], f"at most {MAX_FORM_FIELDS} fields"),),
        ) from error
    if fields.keys() == {"payload"} and len(fields["payload"]) == 1:
        return read_payload("application/json", fields["payload"][0].encode())
    return {
        name: values[0] if len(values) == 1 else list[Json](values)
        for name, values in fields.items()
    }


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise RejectedError(
            "unsupported_media_type",
            "the body is neither JSON nor text in UTF-8",
            details=(finding("body", str(error), "JSON"),),
        ) from error
