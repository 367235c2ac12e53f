"""``penstock apply``, ``versions``, ``publish``, ``archive`` and ``alias``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from penstock.cli.display import moment, print_done, print_list, status_text
from penstock.cli.failure import MISUSED, CommandError
from penstock.cli.gateway import gateway, send
from penstock.cli.lazy import group
from penstock.cli.options import AsJson

if TYPE_CHECKING:
    from rich.text import Text

    from penstock.client import Client
    from penstock.contracts.json import Json
    from penstock.contracts.rpc import Alias, Applied, AppliedDefinition, Version

Kind = Literal["workflow", "network", "agent", "tool", "webhook", "schedule"]
KINDS: Final[tuple[Kind, ...]] = ("workflow", "network", "agent", "tool", "webhook", "schedule")
"""In the order in which a name is looked up."""
SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
STANDARD_INPUT: Final = "-"
CHANGE_STYLE: Final = {"created": "green", "updated": "yellow", "unchanged": "dim"}
_PLACE: Final = re.compile(r"documents\[(\d+)\](?:\[(\d+)\])?\.?(.*)", re.DOTALL)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the definition.")]
AliasName = Annotated[
    str, typer.Argument(metavar="ALIAS", help="Name of the alias, such as stable.")
]
OfKind = Annotated[
    Kind | None, typer.Option(help="Kind of the definition; default: the first with this name.")
]

aliases = group()


# -- apply: the registry reads the YAML, so its findings name lines and fields alike ------------


def apply(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Same as --file.", show_default=False),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", help="YAML or JSON file, folder, or - for standard input."),
    ] = None,
    publish: Annotated[bool, typer.Option(help="Publish the documents, too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Store all documents at once and print the change of each.

    Raises:
        CommandError: A file cannot be read, or the registry refused; nothing was stored then.
    """
    with gateway(context) as client:
        applied = apply_files(client, [*(sources or ()), *(files or ())], publish=publish)
    print_applied(applied, as_json=as_json)


def apply_files(client: Client, files: list[str], *, publish: bool = True) -> Applied:
    """Store the documents of files and folders.

    Raises:
        CommandError: A file cannot be read, or the registry refused.
    """
    if not files:
        raise CommandError("give files or folders of documents", exit_code=MISUSED)
    found = read_documents(files)
    if not any(document.strip() if isinstance(document, str) else True for _, document in found):
        raise CommandError(f"no documents in {', '.join(files)}", exit_code=MISUSED)
    from penstock.cli.gateway import refusal
    from penstock.client import Call, ProblemError
    from penstock.contracts.rpc import Applied

    body: Json = {"documents": [document for _, document in found], "publish": publish}
    try:
        return client.send(Call(Applied, "POST", "/v1/apply", body))
    except ProblemError as error:
        raise located(refusal(error), [name for name, _ in found]) from error


def print_applied(applied: Applied, *, as_json: bool = False) -> None:
    """Print the change of each document."""
    columns: dict[str, Callable[[AppliedDefinition], str | Text]] = {
        "kind": lambda one: one.kind,
        "name": lambda one: one.name,
        "version": lambda one: f"v{one.version}" if one.version else "not published",
        "change": lambda one: status_text(one.change, CHANGE_STYLE),
        "plan": lambda one: (one.plan_digest or "")[:12],
    }
    print_list(applied.results, columns, as_json=as_json)


def read_documents(files: list[str]) -> list[tuple[str, Json]]:
    """Return the documents of files, of folders' YAML and JSON files, and of standard input.

    Returns:
        The name of each document's file, and the document: a text in YAML, or a value from JSON.

    Raises:
        CommandError: A file is missing or cannot be read.
    """
    documents: list[tuple[str, Json]] = []
    for name in files:
        if name == STANDARD_INPUT:
            documents += _documents("standard input", sys.stdin.buffer.read())
            continue
        path = Path(name)
        try:
            members = [path]
            if path.is_dir():
                members = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            for member in members:
                documents += _documents(str(member), member.read_bytes())
        except OSError as error:
            where = error.filename or name
            raise CommandError(f"{where}: {error.strerror}", exit_code=MISUSED) from error
    return documents


def _documents(name: str, body: bytes) -> list[tuple[str, Json]]:
    from penstock.texts import TextError, documents_of

    try:
        found = documents_of(name, body)
    except TextError as error:
        raise CommandError(f"{name}: {error}", exit_code=MISUSED) from error
    return [(name if len(found) == 1 else f"{name}#{n}", one) for n, one in enumerate(found, 1)]


def located(error: CommandError, names: list[str]) -> CommandError:
    """Return an error with names of files instead of ``documents[n]``."""

    def place(path: str) -> str:
        if (found := _PLACE.fullmatch(path)) is None or int(found[1]) >= len(names):
            return path
        name = names[int(found[1])]
        if found[2] is not None:
            name += f"#{int(found[2]) + 1}"
        return f"{name}: {found[3]}" if found[3] else name

    findings = tuple(one._replace(path=place(one.path)) for one in error.findings)
    message = error.message
    for before, after in zip(error.findings, findings, strict=True):
        message = message.replace(before.path, after.path) if before.path else message
    return CommandError(message, findings=findings, exit_code=error.exit_code)


# -- published versions -------------------------------------------------------------------------


def versions(
    context: typer.Context, name: Name, kind: OfKind = None, as_json: AsJson = False
) -> None:
    """Print the versions of a definition, newest first."""
    from penstock.runs.definition_views import VersionItems

    found = send(
        context, VersionItems, "GET", definition_path(context, name, kind) + "/versions"
    ).items
    columns: dict[str, Callable[[Version], str]] = {
        "version": lambda one: f"v{one.version}",
        "": lambda one: "in force" if one.in_force else "",
        "published": lambda one: moment(one.published_at),
        "plan": lambda one: one.plan_digest[:12],
    }
    print_list(found, columns, as_json=as_json)


def publish(
    context: typer.Context,
    name: Name,
    version: Annotated[
        int | None,
        typer.Option(min=1, help="Publish this version again; default: the stored definition."),
    ] = None,
    kind: OfKind = None,
    as_json: AsJson = False,
) -> None:
    """Publish the stored definition, or an older version again."""
    from penstock.contracts.rpc import AppliedDefinition

    body: Json = {"version": version} if version is not None else {}
    path = definition_path(context, name, kind) + "/publish"
    done = send(context, AppliedDefinition, "POST", path, body)
    print_done(done, f"{name}: v{done.version} is in force", as_json=as_json)


def archive(
    context: typer.Context, name: Name, kind: OfKind = None, as_json: AsJson = False
) -> None:
    """Archive a definition that no other one uses."""
    from penstock.contracts.rpc import Definition

    done = send(context, Definition, "POST", definition_path(context, name, kind) + "/archive")
    print_done(done, f"{name} is archived", as_json=as_json)


@aliases.command("set")
def set_alias(
    context: typer.Context,
    name: Name,
    alias: AliasName,
    version: Annotated[
        int, typer.Argument(min=1, metavar="VERSION", help="Number of the version.")
    ],
    canary: Annotated[
        int | None, typer.Option(min=1, help="Second version, for a share of the runs.")
    ] = None,
    weight: Annotated[
        int | None, typer.Option(min=1, max=100, help="Percentage of runs for the second version.")
    ] = None,
    kind: OfKind = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version."""
    if (canary is None) != (weight is None):
        raise typer.BadParameter("--canary and --weight go together")
    from penstock.contracts.rpc import Alias

    body: dict[str, Json] = {"version": version}
    if canary is not None:
        body["canary"] = {"version": canary, "weight": weight}
    path = definition_path(context, name, kind) + "/aliases/{}"
    stored = send(context, Alias, "PUT", path, body, ids=[alias])
    print_done(stored, f"{name}@{alias} is {_aim(stored)}", as_json=as_json)


@aliases.command("list")
def list_aliases(
    context: typer.Context, name: Name, kind: OfKind = None, as_json: AsJson = False
) -> None:
    """List the aliases of a definition."""
    from penstock.contracts.rpc import Aliases

    found = send(context, Aliases, "GET", definition_path(context, name, kind) + "/aliases").items
    columns: dict[str, Callable[[Alias], str]] = {
        "alias": lambda one: f"{name}@{one.alias}",
        "stands for": _aim,
        "since": lambda one: moment(one.updated_at),
    }
    print_list(found, columns, as_json=as_json)


@aliases.command("delete")
def delete_alias(
    context: typer.Context,
    name: Name,
    alias: AliasName,
    kind: OfKind = None,
    as_json: AsJson = False,
) -> None:
    """Remove an alias."""
    from penstock.contracts.facts import Record

    path = definition_path(context, name, kind) + "/aliases/{}"
    send(context, Record, "DELETE", path, ids=[alias])
    print_done({"deleted": f"{name}@{alias}"}, f"{name}@{alias} is gone", as_json=as_json)


def _aim(alias: Alias) -> str:
    canary = alias.canary
    return f"v{alias.version}" + (f", {canary.weight}% v{canary.version}" if canary else "")


def definition_path(context: typer.Context, name: str, kind: Kind | None) -> str:
    """Return the path of a definition; without its kind the first one with the name."""
    from penstock.client import Call, ProblemError, path_of
    from penstock.contracts.rpc import Definition

    with gateway(context) as client:
        candidates = [path_of(f"/v1/{one}s/{{}}", name) for one in ((kind,) if kind else KINDS)]
        for path in candidates[:-1]:
            try:
                client.send(Call(Definition, "GET", path))
            except ProblemError as error:
                if error.code != "unknown_definition":
                    raise
            else:
                return path
    return candidates[-1]
