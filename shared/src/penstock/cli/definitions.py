"""Commands about what is published: versions, aliases, archive.

Only signatures stand here, as in ``app``: what they do is imported when they are called.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="Agent, network or workflow.")]
AliasName = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as stable.")]
Kind = Annotated[
    str | None,
    typer.Option(help="agent, network, workflow, tool, webhook or schedule; else it is looked up."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

definitions = typer.Typer(rich_markup_mode=None)
aliases = typer.Typer(
    help="Aliases of versions: NAME@ALIAS.", no_args_is_help=True, rich_markup_mode=None
)


def add_definitions(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(definitions)
    app.add_typer(aliases, name="alias")


def _work() -> Any:
    """Import what does the commands' work."""
    return importlib.import_module("penstock.cli.versions")


@definitions.command("versions")
def show_versions(
    context: typer.Context, name: Name, kind: Kind = None, as_json: AsJson = False
) -> None:
    """List the published versions of a name, newest first."""
    _work().list_versions(context.obj, name, kind=kind, as_json=as_json)


@definitions.command("publish")
def publish(
    context: typer.Context,
    name: Name,
    version: Annotated[
        int | None,
        typer.Option(min=1, help="Publish this version again; default: the stored definition."),
    ] = None,
    kind: Kind = None,
) -> None:
    """Publish a definition."""
    _work().publish_version(context.obj, name, kind=kind, version=version)


@definitions.command("archive")
def archive(context: typer.Context, name: Name, kind: Kind = None) -> None:
    """Archive a definition with all versions; publishing restores it."""
    _work().archive_definition(context.obj, name, kind=kind)


@aliases.command("set")
def set_alias(
    context: typer.Context,
    name: Name,
    alias: AliasName,
    version: Annotated[int, typer.Argument(min=1, help="The version.")],
    canary: Annotated[
        int | None, typer.Option(min=1, help="Another version, for some of the runs.")
    ] = None,
    weight: Annotated[
        int | None, typer.Option(min=1, max=100, help="Percentage of runs for the other version.")
    ] = None,
    kind: Kind = None,
) -> None:
    """Point an alias at a version."""
    if (canary is None) != (weight is None):
        raise typer.BadParameter("--canary and --weight go together")
    _work().put_alias(context.obj, name, alias, version, kind=kind, canary=canary, weight=weight)


@aliases.command("list")
def list_aliases(
    context: typer.Context, name: Name, kind: Kind = None, as_json: AsJson = False
) -> None:
    """List the aliases of a definition."""
    _work().show_aliases(context.obj, name, kind=kind, as_json=as_json)


@aliases.command("delete")
def delete_alias(context: typer.Context, name: Name, alias: AliasName, kind: Kind = None) -> None:
    """Remove an alias."""
    _work().remove_alias(context.obj, name, alias, kind=kind)
