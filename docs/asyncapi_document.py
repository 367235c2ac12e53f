"""The AsyncAPI document: every subject of the bus with what travels on it, from the contracts.

Addresses are built by the functions of ``penstock.contracts.subjects``, payloads are the models,
and the verbs of request/reply are read from the services' own tables.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, cast, get_type_hints

import yaml
from pydantic import BaseModel

from penstock.catalogue import schemas_of
from penstock.contracts import facts, pending, rpc, runners, subjects
from penstock.contracts.messages import Claim, DeadLetter, DeltaBatch, TimerDue
from penstock.contracts.structs import WireStruct
from penstock_archive import parts as archive
from penstock_archive.erasure import Eraser
from penstock_archive.keeping import Keeper
from penstock_archive.queries import Queries
from penstock_archive.reports import Reports
from penstock_registry import handlers as registry

_SHARD: Final = cast("int", "{shard}")
_NUMBER: Final = cast("int", "{decision}")
_ATTEMPT: Final = cast("int", "{attempt}")
_COORDINATES: Final = ("{tenant}", _SHARD, "{run}")
_PREFIX: Final = subjects.run_prefix(*_COORDINATES)

PARAMETERS: Final = {
    "tenant": "Whose it is.",
    "shard": "CRC-32 of the run id, modulo the number of shards.",
    "run": "26 characters; sorts by time unless derived from an idempotency key.",
    "step": "Step within the run.",
    "attempt": "Attempt at the step, from 1.",
    "decision": "Number of the decision, from 1.",
    "kind": "`agent`, `tool` or `run` (done by the engine itself).",
    "record": "Open record: a wait, an approval, a client tool's call, a lost outcome.",
    "queue": "Queue of the runners.",
    "signal": "Id of the signal.",
    "timer": "Id of the timer within the run.",
    "stream": "Stream that the message was in.",
    "consumer": "Durable that gave up on it.",
    "instance": "Process.",
    "runner": "Runner, among those of its queue.",
}


class Channel(NamedTuple):
    """A subject, what travels on it, who sends it and who receives it."""

    name: str
    address: str
    message: str | None
    model: type[BaseModel | WireStruct] | None
    summary: str
    stream: str | None
    sent_by: str
    received_by: str


CHANNELS: Final = (
    Channel(
        "run.invoked",
        subjects.invoke(_PREFIX),
        "run.invoked",
        facts.RunInvoked,
        "A run is asked for.",
        subjects.RUNS,
        "gateway",
        "engine",
    ),
    Channel(
        "step.result",
        subjects.result(_PREFIX, "{step}", _ATTEMPT),
        "step.result",
        facts.StepResult,
        "The outcome of one attempt at a step.",
        subjects.RUNS,
        "runners",
        "engine",
    ),
    Channel(
        "run.signalled",
        subjects.signal(_PREFIX, "{signal}"),
        "run.signalled",
        facts.SignalReceived,
        "Something from outside reached the run.",
        subjects.RUNS,
        "gateway",
        "engine",
    ),
    Channel(
        "run.cancel_requested",
        subjects.cancel(_PREFIX),
        "run.cancel_requested",
        facts.CancelRequested,
        "The run is to stop.",
        subjects.RUNS,
        "gateway",
        "engine",
    ),
    Channel(
        "step.scheduled",
        subjects.out(
            _PREFIX, _NUMBER, subjects.step_suffix("{kind}", "{queue}", "{step}", _ATTEMPT)
        ),
        "step.scheduled",
        facts.StepScheduled,
        "A decision schedules one attempt at a step.",
        subjects.RUNS,
        "engine",
        "runners of the queue",
    ),
    Channel(
        "run.state",
        subjects.out(_PREFIX, _NUMBER, subjects.STATE_SUFFIX),
        "run.state",
        facts.StateChanged,
        "A decision schedules nothing: it node records, lets steps wait, or stops some.",
        subjects.RUNS,
        "engine",
        "whoever watches",
    ),
    Channel(
        "run.ended",
        subjects.out(_PREFIX, _NUMBER, subjects.END_SUFFIX),
        "run.ended",
        facts.RunEnded,
        "A decision ends the run.",
        subjects.RUNS,
        "engine",
        "whoever watches",
    ),
    Channel(
        "timer.set",
        subjects.timer_set(*_COORDINATES, "{timer}"),
        "timer.due",
        TimerDue,
        "A timer is set: the server publishes it as due at the time in `Nats-Schedule`.",
        subjects.TIMERS,
        "engine",
        "nats-server",
    ),
    Channel(
        "timer.due",
        subjects.timer_due(*_COORDINATES, "{timer}"),
        "timer.due",
        TimerDue,
        "A timer has come due. It wakes the run up; the log says what is to be done.",
        subjects.TIMERS,
        "nats-server",
        "engine",
    ),
    Channel(
        "delta",
        subjects.delta(*_COORDINATES, "{step}", _ATTEMPT),
        "delta",
        DeltaBatch,
        "Pieces of text that a step emits as it runs, kept for minutes.",
        subjects.DELTAS,
        "runners",
        "gateway",
    ),
    Channel(
        "control.stop",
        subjects.stop(*_COORDINATES),
        "control.stop",
        runners.StopRequest,
        "Runners are to stop working for the run, or for the steps that the body names. Best "
        "effort, nothing is stored; an empty body: everything.",
        None,
        "engine",
        "runners",
    ),
    Channel(
        "dead",
        subjects.dead("{stream}", "{consumer}"),
        "dead",
        DeadLetter,
        "A message was given up on.",
        subjects.DEAD,
        "all services",
        "people",
    ),
    Channel(
        "canary",
        subjects.canary("{instance}"),
        None,
        None,
        "A process proves that it can append. The body says nothing.",
        subjects.CANARY,
        "all services",
        "nobody",
    ),
    Channel(
        "runner",
        f"$KV.{subjects.RUNNERS}.{subjects.runner_key('{kind}', '{queue}', '{runner}')}",
        "runner",
        runners.RunnerRecord,
        "A runner's heartbeat; the header `Nats-TTL` says when it counts as lost.",
        f"KV_{subjects.RUNNERS}",
        "runners",
        "registry",
    ),
    Channel(
        "pending",
        f"$KV.{subjects.PENDING}.{subjects.pending_key('{tenant}', '{run}', '{record}')}",
        "pending",
        pending.PendingRecord,
        "A run waits for somebody outside; removed when it was answered.",
        f"KV_{subjects.PENDING}",
        "engine",
        "gateway",
    ),
)
"""Everything but request/reply."""

_LIVE: Final = tuple(
    channel._replace(
        name=f"live.{channel.name}",
        address=subjects.live(channel.address),
        summary=f"Live copy, with its sequence in `Nats-Sequence`: {channel.summary}",
        stream=None,
        sent_by="nats-server",
        received_by="whoever watches",
    )
    for channel in CHANNELS
    if channel.stream == subjects.RUNS
)


class Request(NamedTuple):
    """A verb of a service: its request, its reply."""

    service: str
    verb: str
    request: type[BaseModel | WireStruct]
    reply: type[BaseModel | WireStruct]

    @property
    def name(self) -> str:
        """Return the name of its channel."""
        return subjects.rpc("registry" if self.service == "registry" else "archive", self.verb)


def requests() -> Iterator[Request]:
    """Yield all verbs of all services that answer."""

    def bare(kind: type[Any]) -> Any:
        return object.__new__(kind)

    parts = registry.Parts(*(bare(kind) for kind in get_type_hints(registry.Parts).values()))
    for verb, entry in registry.verbs(parts).items():
        yield Request("registry", verb, entry.request, _reply_of(entry.perform))
    for verb, asked in archive.verbs(bare(archive.Parts)).items():
        yield Request("archive", verb, asked.request, _reply_of(_answering(verb)))


def _answering(verb: str) -> Any:
    """Return the method that answers a verb of the archive."""
    return next(
        getattr(part, verb) for part in (Queries, Reports, Eraser, Keeper) if hasattr(part, verb)
    )


def _reply_of(function: Any) -> type[BaseModel]:
    found = inspect.get_annotations(function, eval_str=True)["return"]
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise TypeError(f"{function} returns {found}, not a model")
    return found


def _ref(*parts: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)}


def _first_line(model: type[BaseModel | WireStruct]) -> str:
    return (inspect.getdoc(model) or "").partition("\n")[0].replace("``", "`")


def _parameters(address: str) -> dict[str, Any]:
    return {
        name: {"description": PARAMETERS[name]} for name in re.findall(r"\{([a-z]+)\}", address)
    }


def _plain(value: Any) -> Any:
    """Leave out what JSON Schema has from OpenAPI and AsyncAPI reads otherwise."""
    if isinstance(value, Mapping):
        return {
            key: _plain(item)
            for key, item in value.items()
            if not (key == "discriminator" and isinstance(item, Mapping))
        }
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def document() -> dict[str, Any]:
    """Return the document."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    models: list[type[BaseModel | WireStruct]] = [Claim, rpc.Reply]

    def message_of(name: str, model: type[BaseModel | WireStruct], payload: dict[str, Any]) -> None:
        messages[name] = {
            "name": name,
            "contentType": "application/json",
            "summary": _first_line(model),
            "payload": payload,
        }

    for channel in (*CHANNELS, *_LIVE):
        entry: dict[str, Any] = {"address": channel.address, "summary": channel.summary}
        if parameters := _parameters(channel.address):
            entry["parameters"] = parameters
        if channel.message is not None and channel.model is not None:
            if channel.model not in models:
                models.append(channel.model)
            message_of(
                channel.message,
                channel.model,
                _ref("components", "schemas", channel.model.__name__),
            )
            key = channel.message.replace(".", "_")
            entry["messages"] = {key: _ref("components", "messages", channel.message)}
        if channel.stream is not None:
            entry["x-stream"] = channel.stream
        channels[channel.name] = entry
        if channel.sent_by != "nats-server":
            operations[f"send.{channel.name}"] = {
                "action": "send",
                "channel": _ref("channels", channel.name),
                "summary": f"Sent by: {channel.sent_by}.",
            }
        operations[f"receive.{channel.name}"] = {
            "action": "receive",
            "channel": _ref("channels", channel.name),
            "summary": f"Received by: {channel.received_by}.",
        }
    for request in requests():
        models += [model for model in (request.request, request.reply) if model not in models]
        name = request.name
        message_of(
            f"{name}.request",
            request.request,
            _ref("components", "schemas", request.request.__name__),
        )
        message_of(
            f"{name}.reply",
            request.reply,
            {
                "allOf": [
                    _ref("components", "schemas", rpc.Reply.__name__),
                    {
                        "properties": {
                            "result": _ref("components", "schemas", request.reply.__name__)
                        }
                    },
                ]
            },
        )
        channels[name] = {
            "address": name,
            "summary": _first_line(request.request),
            "messages": {"request": _ref("components", "messages", f"{name}.request")},
        }
        channels[f"{name}.reply"] = {
            "address": None,
            "summary": "The inbox that the request names.",
            "messages": {"reply": _ref("components", "messages", f"{name}.reply")},
        }
        operations[name] = {
            "action": "receive",
            "channel": _ref("channels", name),
            "summary": f"Answered by: {request.service}.",
            "reply": {"channel": _ref("channels", f"{name}.reply")},
        }
    message_of("claim", Claim, _ref("components", "schemas", Claim.__name__))
    schemas = schemas_of(models, ref_template="#/components/schemas/{model}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Penstock",
            "version": importlib.metadata.version("penstock"),
            "description": (
                "What travels on the bus: the log of runs and its live copies, timers, text, "
                "dead letters, heartbeats, and requests between services. Messages of the log "
                "above 128 KiB are replaced by a `claim`; their body is the object of that name "
                f"in the object store `{subjects.ARTIFACTS}`."
            ),
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "The bus that `penstock dev` starts.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": _plain(schemas)},
    }


def render() -> str:
    """Return the document as YAML."""
    head = "# Generated from the code by `make docs`.\n"
    return head + yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=100)
