"""Webhooks: signed deliveries from outside that start runs, each once only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue, TypeAdapter
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from penstock import clock
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, RejectedError, finding
from penstock.contracts.facts import DefinitionKind, Record, RunStatus, Trigger
from penstock.contracts.ids import run_id_from_key
from penstock.contracts.json import JsonObject
from penstock.contracts.runners import WebhookRecord
from penstock.expressions.templates import render
from penstock.runs.start import StartParams
from penstock_gateway.core.requests import GENERIC_WEBHOOK
from penstock_gateway.core.signatures import Delivery, check, secret_bytes
from penstock_gateway.gateway import Gateway
from penstock_gateway.middleware.entry import read_body
from penstock_gateway.raw import Answer, RawHeaders, read
from penstock_gateway.runs.start import new_run_id

SECRET_PREFIX: Final = "PENSTOCK_SECRET_"
GENERIC_SECRETS: Final = ("WEBHOOK_SECRET_GENERIC", "WEBHOOK_SECRET_DEFAULT", "WEBHOOK_SECRET")
"""Variables of which any may hold the secret of ``/webhooks/generic``."""

_TOLERANCE_SECONDS: Final = 300.0
_HIDDEN_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})


class DeliveryAccepted(Record):
    """Reply to a delivery: the run that it started, now or when it arrived first."""

    run_id: str
    status: RunStatus = RunStatus.CREATED
    duplicate: bool = False


_ACCEPTED: Final[TypeAdapter[DeliveryAccepted]] = TypeAdapter(DeliveryAccepted)


class Hooks:
    """The endpoints that take deliveries."""

    def __init__(self, gateway: Gateway, environment: Mapping[str, str] = os.environ) -> None:
        """Use the gateway's parts; they exist once it is open.

        Args:
            gateway: The parts.
            environment: Where secrets are: documents name them only.
        """
        self._gateway = gateway
        self._environment = environment
        self._max_body = gateway.settings.max_body_bytes

    async def deliver(self, request: Request) -> Response:
        """Start what the webhook is configured to start.

        The signature is checked over the raw bytes: Standard Webhooks (`webhook-id`,
        `webhook-timestamp`, `webhook-signature`) or GitHub's `X-Hub-Signature-256`. Answers 202
        once the run is durably in the log; the same delivery again starts nothing and gives the
        same run.
        """
        raw = dict(request.scope["headers"])
        body = await read_body(raw, request.receive, self._max_body)
        tenant: str = request.path_params["tenant"]
        name: str = request.path_params["name"]
        record = await self._record(tenant, name)
        headers = _texts(raw)
        delivery = check(
            headers,
            body,
            secrets=[self._secret(secret) for secret in record.secrets],
            now=clock.epoch(),
            tolerance_seconds=record.tolerance_seconds,
        )
        run_input = render(record.input, {"payload": _payload(body), "headers": _shown(headers)})
        params = StartParams(
            tenant=tenant,
            run_id=_run_id(tenant, name, delivery),
            name=record.target,
            input=run_input,
            trigger=Trigger.WEBHOOK,
            requested_by=f"webhook:{name}",
            path="webhook.target",
        )
        return await self._start(params)

    async def deliver_generic(self, request: Request) -> Response:
        """Start the workflow that the body names: `workflow_name` and `inputs`.

        Needs an API key with the role operator, or a signature by WEBHOOK_SECRET_GENERIC (or
        WEBHOOK_SECRET) on a gateway where keys are not needed.
        """
        raw = dict(request.scope["headers"])
        body = await read_body(raw, request.receive, self._max_body)
        secrets = [
            secret_bytes(value)
            for name in GENERIC_SECRETS
            if (value := self._environment.get(name))
        ]
        headers = _texts(raw)
        delivery = check(
            headers,
            body,
            secrets=secrets,
            now=clock.epoch(),
            tolerance_seconds=_TOLERANCE_SECONDS,
        )
        settings = self._gateway.settings
        if delivery.signed and b"authorization" not in raw:
            tenant, requested_by = settings.dev_tenant, "webhook:generic"
        else:
            caller = self._gateway.authenticator.caller(raw)
            caller.require("operator")
            tenant, requested_by = caller.tenant, caller.key_id
        parsed = read(GENERIC_WEBHOOK, body)
        if parsed.webhook_id is not None and "webhook-id" not in headers:
            delivery = Delivery(parsed.webhook_id, signed=delivery.signed)
        params = StartParams(
            tenant=tenant,
            run_id=_run_id(tenant, "generic", delivery),
            name=parsed.workflow_name,
            kind=DefinitionKind.WORKFLOW,
            input=parsed.inputs,
            trigger=Trigger.WEBHOOK,
            requested_by=requested_by,
            path="workflow_name",
        )
        return await self._start(params)

    async def _start(self, params: StartParams) -> Response:
        started = await self._gateway.starter.start(params)
        run_id = started.run_id
        headers: RawHeaders = [(b"location", b"/v1/runs/" + run_id.encode())]
        if started.replayed:
            headers.append((b"idempotent-replayed", b"true"))
        accepted = DeliveryAccepted(run_id=run_id, duplicate=started.replayed)
        return Answer(_ACCEPTED.dump_json(accepted), 202, headers)

    async def _record(self, tenant: str, name: str) -> WebhookRecord:
        key = subjects.webhook_key(tenant, name)
        record = self._gateway.webhooks.values.get(key)
        if record is None:
            raise RejectedError("not_found", f"there is no webhook {name[:64]}")
        return record

    def _secret(self, name: str) -> bytes:
        variable = SECRET_PREFIX + name.upper().replace("-", "_")
        value = self._environment.get(SECRET_PREFIX + name) or self._environment.get(variable)
        if not value:
            raise InvariantError(
                "secret_missing", f"{variable} is not set, so no signature can be checked"
            )
        return secret_bytes(value)


def _run_id(tenant: str, name: str, delivery: Delivery) -> str:
    """Return the id that a delivery stands for; without an id of the delivery a new one."""
    if delivery.delivery_id is None:
        return new_run_id()
    return run_id_from_key(tenant, f"webhook/{name}/{delivery.delivery_id}")


def _texts(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw.items()}


def _shown(headers: Mapping[str, str]) -> JsonObject:
    """Return the headers that a template may use: none that would let it leak a credential."""
    return {
        name: value
        for name, value in headers.items()
        if name not in _HIDDEN_HEADERS and "signature" not in name
    }


def _payload(body: bytes) -> JsonValue:
    """Return a delivery's body: JSON, else text."""
    try:
        payload: JsonValue = from_json(body)
    except ValueError:
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise RejectedError(
                "unsupported_media_type",
                "the body is neither JSON nor text in UTF-8",
                details=(finding("body", str(error), "JSON"),),
            ) from error
    return payload
