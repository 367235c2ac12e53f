"""The catalogue of messages: every model that crosses the bus alone, and its JSON Schema.

``make docs`` writes the schemas to ``docs/messages``; no process imports this module. A model
that is in no entry, and part of none, fails the contract tests.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaValue

from penstock.contracts import (
    actions,
    archive,
    archive_maintenance,
    archive_reports,
    errors,
    facts,
    pending,
    plan,
    rpc,
    runners,
    schedules,
    turns,
)
from penstock.contracts.messages import Claim, DeadLetter, DeltaBatch, LogEntry, TimerDue
from penstock.contracts.structs import WireStruct
from penstock.runs import bundles, events, views


class Message(NamedTuple):
    """One kind of message: its name in the catalogue, its model, and where it travels."""

    name: str
    model: type[BaseModel | WireStruct]
    where: str


_RUN: Final = "run.{tenant}.{shard}.{run}"

FACTS: Final = (
    Message("run.invoked", facts.RunInvoked, f"stream RUNS, `{_RUN}.in.invoke`"),
    Message(
        "step.result", facts.StepResult, f"stream RUNS, `{_RUN}.in.result.{{step}}.{{attempt}}`"
    ),
    Message("run.signalled", facts.SignalReceived, f"stream RUNS, `{_RUN}.in.signal.{{signal}}`"),
    Message("run.cancel_requested", facts.CancelRequested, f"stream RUNS, `{_RUN}.in.cancel`"),
    Message(
        "step.scheduled",
        facts.StepScheduled,
        f"stream RUNS, `{_RUN}.out.{{n}}.step.{{kind}}.{{queue}}.{{step}}.{{attempt}}`",
    ),
    Message("run.state", facts.StateChanged, f"stream RUNS, `{_RUN}.out.{{n}}.state`"),
    Message("run.ended", facts.RunEnded, f"stream RUNS, `{_RUN}.out.{{n}}.end`"),
)
"""What the log holds."""

OTHERS: Final = (
    Message("claim", Claim, "stream RUNS, in place of a body above the threshold"),
    Message("action.respond", actions.Respond, "`output` of an agent's `step.result`"),
    Message("action.use_tools", actions.UseTools, "`output` of an agent's `step.result`"),
    Message("action.route_to_agent", actions.RouteToAgent, "`output` of an agent's `step.result`"),
    Message("control.stop", runners.StopRequest, "`control.stop.{tenant}.{shard}.{run}`"),
    Message(
        "timer.due",
        TimerDue,
        "stream TIMERS, `timer.due.{tenant}.{shard}.{run}.{timer}`",
    ),
    Message(
        "delta",
        DeltaBatch,
        "stream DELTAS, `delta.{tenant}.{shard}.{run}.{step}.{attempt}`",
    ),
    Message("dead", DeadLetter, "stream DEAD, `dead.{stream}.{consumer}`"),
    Message("log_entry", LogEntry, "pages and exports of the log"),
    Message("bundle.header", bundles.BundleHeader, "first line of a bundle"),
    Message("bundle.plan", bundles.BundlePlan, "second line of a bundle"),
    Message("bundle.entry", bundles.BundleEntry, "lines of a bundle"),
    Message("bundle.footer", bundles.BundleFooter, "last line of a bundle"),
    Message("plan", plan.Plan, "bucket `plans`, under its digest"),
    Message("published_version", plan.PublishedVersion, "bucket `published`, `{tenant}.{name}`"),
    Message("pending", pending.PendingRecord, "bucket `pending`, `{tenant}.{run}.{node record}`"),
    Message(
        "correlation",
        pending.CorrelationRecord,
        "bucket `pending`, `{tenant}.by_key.{hash}.{run}`",
    ),
    Message("runner", runners.RunnerRecord, "bucket `runners`, `{kind}.{queue}.{runner}`"),
    Message("schedule", schedules.ScheduleRecord, "bucket `schedules`, `{tenant}.{name}`"),
    Message(
        "schedule_control", schedules.ScheduleControl, "bucket `schedules`, beside its schedule"
    ),
    Message(
        "schedule_progress", schedules.ScheduleProgress, "bucket `schedules`, beside its schedule"
    ),
    Message("turn", turns.TurnRecord, "bucket `turns`, `{tenant}.{hash}`"),
    Message("limit", runners.LimitRecord, "bucket `limits`, `rate.{hash}`"),
    Message("block", runners.BlockRecord, "bucket `limits`, `block.{hash}`"),
    Message("api_key", runners.KeyRecord, "bucket `keys`, under the SHA-256 of the key"),
    Message("webhook", runners.WebhookRecord, "bucket `webhooks`, `{tenant}.{name}`"),
    Message("client_event", events.ClientEvent, "server-sent events and pages of events"),
    Message("run_view", views.RunView, "answers about runs"),
    Message("error", errors.ErrorInfo, "facts, replies"),
)
"""Messages beside the log."""


def _declared_in(module: Any) -> Iterator[type[BaseModel]]:
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, BaseModel)
            and value.__module__ == module.__name__
        ):
            yield value


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


REGISTRY: Final = tuple(
    Message(f"registry.{_snake(model.__name__)}", model, "request/reply, `rpc.registry.*`")
    for model in _declared_in(rpc)
)
"""Requests to the registry and its replies."""

ARCHIVE: Final = tuple(
    Message(f"archive.{_snake(model.__name__)}", model, "request/reply, `rpc.archive.*`")
    for module in (archive, archive_reports, archive_maintenance)
    for model in _declared_in(module)
)
"""Requests to the archive and its replies."""

MESSAGES: Final = (*FACTS, *OTHERS, *REGISTRY, *ARCHIVE)
"""Every message, each under its own name."""


def schema(message: Message) -> JsonSchemaValue:
    """Return a message's JSON Schema (2020-12), as a writer of the message has to obey it."""
    definitions = schemas_of([message.model], ref_template="#/$defs/{model}")
    for name, definition in definitions.items():
        _describe(definition, _texts().get(name, {}))
    top = definitions.pop(message.model.__name__)
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": message.name,
        **{key: value for key, value in top.items() if key != "title"},
    }
    if definitions:
        document["$defs"] = definitions
    return document


def schemas_of(
    models: Iterable[type[BaseModel | WireStruct]], *, ref_template: str
) -> dict[str, JsonSchemaValue]:
    """Return the JSON Schemas of models and of all their parts, by the models' names.

    Args:
        models: Structs and pydantic models.
        ref_template: How a reference to another of them is spelled.
    """
    mode: Literal["validation"] = "validation"
    inputs = [(model.__name__, mode, TypeAdapter(model)) for model in models]
    _, document = TypeAdapter.json_schemas(inputs, ref_template=ref_template)
    definitions: dict[str, JsonSchemaValue] = document["$defs"]
    return definitions


def _describe(definition: JsonSchemaValue, texts: dict[str, str]) -> None:
    for name, field in definition.get("properties", {}).items():
        field.pop("title", None)
        if name in texts:
            field.setdefault("description", texts[name])
        if "const" in field:
            # It identifies the message, so a reader of the union needs it.
            field.pop("default", None)
            required = [other for other in definition.get("required", ()) if other != name]
            definition["required"] = [name, *required]


@lru_cache(maxsize=1)
def _texts() -> dict[str, dict[str, str]]:
    """Read the texts below the fields of every model from its source, by model and field."""
    modules = {message.model.__module__ for message in MESSAGES}
    modules |= {name for name in sys.modules if name.startswith("penstock.contracts.")}
    found: dict[str, dict[str, str]] = {}
    for module in sorted(modules):
        found |= {node.name: dict(field_texts(node)) for node in classes_of(module)}
    return found


def classes_of(module: str) -> Iterator[ast.ClassDef]:
    """Yield the classes in the source of a module, which may be a compiled one."""
    package, _, name = module.rpartition(".")
    source = files(package).joinpath(f"{name}.py").read_text("utf-8")
    yield from (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))


def field_texts(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the name of each annotated field of a class with the text below it."""
    for field, text in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            yield _alias(field) or field.target.id, inspect.cleandoc(text.value.value)


def pages() -> dict[str, str]:
    """Return the files of the catalogue by their names: an index, and a schema per message."""
    files = {
        f"{message.name}.schema.json": json.dumps(schema(message), indent=2) + "\n"
        for message in MESSAGES
    }
    return {"README.md": _index(), **files}


def _index() -> str:
    introduction = (
        "# Messages\n\n"
        "Generated from the code by `make docs`. All messages are JSON. Readers ignore fields "
        "that they do not know; changes are additive, anything else is a new type. A schema lists "
        "the rules for writers: a field that is not required has the default that it names.\n"
    )
    parts = [introduction]
    for title, messages in (
        ("Facts: the log of a run", FACTS),
        ("Beside the log", OTHERS),
        ("Requests to the registry and its replies", REGISTRY),
        ("Requests to the archive and its replies", ARCHIVE),
    ):
        rows = [
            f"| [`{message.name}`]({message.name}.schema.json) | {message.where} | "
            f"{(message.model.__doc__ or '').strip().splitlines()[0]} |"
            for message in messages
        ]
        parts.append(
            f"\n## {title}\n\n| message | where | what it says |\n|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    return "".join(parts)


def _alias(field: ast.AnnAssign) -> str | None:
    """Return the name that users write, where it is not the field's own."""
    if isinstance(field.value, ast.Call):
        for keyword in field.value.keywords:
            if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return None
