"""A group whose commands are imported when they are called.

``penstock --help`` prints the table alone; no module of a command is imported for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

_WHOLE: Final = 1000
"""Most characters of a sentence in a list of commands: more than any has."""


class Entry(NamedTuple):
    """A command or a group: ``module:name`` of a function or a Typer group, and its help."""

    target: str
    help: str
    section: str | None = None
    """Heading in the list of commands; ``None``: the first one."""


class SectionedGroup(TyperGroup):
    """Lists commands under the headings of their help panels, with whole first sentences."""

    # Typer does not publish the types of its parser.
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            row = name, command.get_short_help_str(limit=_WHOLE)
            sections.setdefault(command.rich_help_panel or "Commands", []).append(row)
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


class LazyGroup(SectionedGroup):
    """Lists ``table`` and imports an entry when it is called; subclasses fill the table."""

    table: Mapping[str, Entry] = {}

    def __init__(self, **attributes: Any) -> None:
        """Create the group with a placeholder for each entry."""
        super().__init__(**attributes)
        for name, entry in self.table.items():
            self.add_command(TyperCommand(name, help=entry.help, rich_help_panel=entry.section))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the imported command instead of its placeholder."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        return name, placeholder and self.load(str(name)), rest

    def load(self, name: str) -> TyperCommand | TyperGroup:
        """Import a command."""
        module, _, attribute = self.table[name].target.partition(":")
        found = getattr(importlib.import_module(f"penstock.cli.{module}"), attribute)
        command: Any
        if isinstance(found, typer.Typer):
            command = typer.main.get_group(found)
        else:
            single = typer.Typer(rich_markup_mode=None, add_completion=False)
            single.command()(found)
            command = typer.main.get_command(single)
        command.name, command.help = name, self.table[name].help
        loaded: TyperCommand | TyperGroup = command
        return loaded


def group() -> typer.Typer:
    """Return an empty group; its help is in the table that names it."""
    # Plain help: Typer's rich one takes 0.25 s to import Markdown, Pygments and the rest.
    return typer.Typer(
        cls=SectionedGroup, no_args_is_help=True, rich_markup_mode=None, add_completion=False
    )
