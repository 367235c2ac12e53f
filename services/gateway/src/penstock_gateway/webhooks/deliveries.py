"""Webhooks: signed deliveries from outside that start runs, each once only."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from pydantic import TypeAdapter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from penstock import clock
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, RejectedError
from penstock.contracts.facts import DefinitionKind, Record, RunStatus, Trigger
from penstock.contracts.ids import run_id_from_key
from penstock.contracts.json import JsonObject
from penstock.contracts.runners import WebhookRecord
from penstock.expressions.templates import render
from penstock.runs.start import StartParams
from penstock.telemetry.logs import EventLog
from penstock_gateway.core.requests import GENERIC_WEBHOOK
from penstock_gateway.core.signatures import (
    SCHEMES,
    Delivery,
    Scheme,
    challenge_of,
    check,
    identified,
    is_credential,
    scheme_of,
    secret_bytes,
)
from penstock_gateway.gateway import Gateway
from penstock_gateway.middleware.entry import read_body
from penstock_gateway.raw import Answer, RawHeaders, read, require_type
from penstock_gateway.runs.start import new_run_id
from penstock_gateway.webhooks.payloads import read_payload

SECRET_PREFIX: Final = "PENSTOCK_SECRET_"
GENERIC_SECRETS: Final = ("WEBHOOK_SECRET_GENERIC", "WEBHOOK_SECRET_DEFAULT", "WEBHOOK_SECRET")
"""Variables of which any may hold the secret of ``/webhooks/generic``."""

_TOLERANCE_SECONDS: Final = 300.0

log = EventLog(__name__)


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

        The signature is checked over the raw bytes, by the webhook's scheme. Answers 202 once the
        run is durably in the log; the same delivery again starts nothing and gives the same run.
        A request by which the sender verifies the address is answered as it expects.
        """
        raw = dict(request.scope["headers"])
        body = await read_body(raw, request.receive, self._max_body)
        tenant: str = request.path_params["tenant"]
        name: str = request.path_params["name"]
        record = await self._record(tenant, name)
        scheme, headers, now = scheme_of(record), _texts(raw), clock.epoch()
        with _refusals(tenant, name):
            delivery = check(
                headers,
                body,
                scheme=scheme,
                secrets=[secret_bytes(self._secret(one), scheme) for one in record.secrets],
                now=now,
                tolerance_seconds=record.tolerance_seconds,
            )
        payload = read_payload(headers.get("content-type", ""), body)
        challenge = challenge_of(record.scheme, payload)
        if challenge is not None:
            return Answer(to_json({"challenge": challenge}))
        with _refusals(tenant, name):
            delivery = identified(
                delivery,
                payload,
                scheme=scheme,
                now=now,
                tolerance_seconds=record.tolerance_seconds,
            )
        run_input = render(record.input, {"payload": payload, "headers": _shown(headers, scheme)})
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

    async def verify(self, request: Request) -> Response:
        """Answer a sender that verifies the address, as those of the scheme `meta` do.

        Returns `hub.challenge` if `hub.verify_token` is the secret that `verify_token` names.
        """
        tenant: str = request.path_params["tenant"]
        name: str = request.path_params["name"]
        record = await self._record(tenant, name)
        query = request.query_params
        if record.verify_token is None or query.get("hub.mode") != "subscribe":
            raise _unknown(name)
        expected = self._secret(record.verify_token).encode()
        shown = query.get("hub.verify_token", "").encode("utf-8", "replace")
        with _refusals(tenant, name):
            if not hmac.compare_digest(expected, shown):
                raise RejectedError("signature_invalid", "hub.verify_token differs")
        challenge = query.get("hub.challenge", "").encode("utf-8", "replace")
        return Answer(challenge, content_type=(b"content-type", b"text/plain; charset=utf-8"))

    async def deliver_generic(self, request: Request) -> Response:
        """Start the workflow that the body names: `workflow_name` and `inputs`.

        Needs an API key with the role operator, or a signature by WEBHOOK_SECRET_GENERIC (or
        WEBHOOK_SECRET) on a gateway where keys are not needed. The scheme is that of the setting
        `PENSTOCK_GENERIC_WEBHOOK_SCHEME`.
        """
        raw = dict(request.scope["headers"])
        body = await read_body(raw, request.receive, self._max_body)
        settings = self._gateway.settings
        scheme = SCHEMES[settings.generic_webhook_scheme]
        secrets = [
            secret_bytes(value, scheme)
            for name in GENERIC_SECRETS
            if (value := self._environment.get(name))
        ]
        headers = _texts(raw)
        with _refusals(settings.dev_tenant, "generic"):
            delivery = check(
                headers,
                body,
                scheme=scheme,
                secrets=secrets,
                now=clock.epoch(),
                tolerance_seconds=_TOLERANCE_SECONDS,
            )
        if delivery.signed and b"authorization" not in raw:
            tenant, requested_by = settings.dev_tenant, "webhook:generic"
        else:
            caller = self._gateway.authenticator.caller(raw)
            caller.require("operator")
            tenant, requested_by = caller.tenant, caller.key_id
        require_type(raw.get(b"content-type"))
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
            raise _unknown(name)
        return record

    def _secret(self, name: str) -> str:
        variable = SECRET_PREFIX + name.upper().replace("-", "_")
        value = self._environment.get(SECRET_PREFIX + name) or self._environment.get(variable)
        if not value:
            raise InvariantError(
                "secret_missing", f"{variable} is not set, so no signature can be checked"
            )
        return value


@contextmanager
def _refusals(tenant: str, name: str) -> Iterator[None]:
    """Log why a delivery is refused; its sender learns only that it is.

    Raises:
        RejectedError: ``signature_invalid``.
    """
    try:
        yield
    except RejectedError as error:
        log.warning(
            "webhook.refused", tenant=tenant, webhook=name, code=error.code, reason=error.message
        )
        message = "the delivery is not signed as this webhook requires"
        raise RejectedError("signature_invalid", message) from error


def _unknown(name: str) -> RejectedError:
    return RejectedError("not_found", f"there is no webhook {name[:64]}")


def _run_id(tenant: str, name: str, delivery: Delivery) -> str:
    """Return the id that a delivery stands for; without an id of the delivery a new one."""
    if delivery.delivery_id is None:
        return new_run_id()
    return run_id_from_key(tenant, f"webhook/{name}/{delivery.delivery_id}")


def _texts(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw.items()}


def _shown(headers: Mapping[str, str], scheme: Scheme) -> JsonObject:
    """Return the headers that a template may use: none that would let it leak a credential."""
    return {
        name: value
        for name, value in headers.items()
        if name != scheme.header and not is_credential(name)
    }
