"""Writes the reference pages that follow from the code; with --check it only compares.

A page is a path below docs/ and a function that gives its text.
"""

import argparse
import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic_settings import BaseSettings

from penstock import catalogue as schemas
from penstock.settings import CoreSettings, DatabaseSettings, settings_markdown

FOLDER = Path(__file__).parent
SERVICES = (
    "penstock_gateway",
    "penstock_registry",
    "penstock_orchestrator",
    "penstock_archive",
    "penstock_agent_runner",
    "penstock_tool_runner",
)


def settings_page() -> str:
    """All settings: the shared blocks, then each service's own fields."""
    blocks: list[type[BaseSettings]] = [CoreSettings, DatabaseSettings]
    for package in (*SERVICES, "penstock.runner"):
        if importlib.util.find_spec(f"{package}.settings") is None:
            continue
        module = importlib.import_module(f"{package}.settings")
        blocks += [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, BaseSettings)
            and value.__module__ == module.__name__
        ]
    return (
        "# Settings\n\n"
        "Generated from the code by `make docs`. Settings are environment variables, read once "
        "when a process starts.\n\n" + settings_markdown(blocks)
    )


def message_pages() -> dict[str, Callable[[], str]]:
    """The catalogue of messages, with a JSON Schema for each."""
    return {
        f"messages/{name}": functools.partial(str, text) for name, text in schemas.pages().items()
    }


def asyncapi_page() -> str:
    """Every subject of the bus with what travels on it."""
    page: str = importlib.import_module("asyncapi_document").render()
    return page


def document_pages() -> dict[str, Callable[[], str]]:
    """A JSON Schema for each kind of document that users write."""
    documents = importlib.import_module("penstock_registry.core.schemas")
    return {
        f"documents/{kind}.schema.json": functools.partial(str, json.dumps(schema, indent=2) + "\n")
        for kind, schema in documents.json_schemas().items()
    }


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "asyncapi.yaml": asyncapi_page,
    **message_pages(),
    **document_pages(),
}


def main() -> int:
    """Write all pages, or with --check report those that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    stale = 0
    for name, render in PAGES.items():
        file, text = FOLDER / name, render()
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"docs/{name} is not what the code says: run `make docs`")
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    for file in sorted((FOLDER / "messages").glob("*.json")):
        if file.relative_to(FOLDER).as_posix() in PAGES:
            continue
        stale += 1
        if check:
            print(f"docs/messages/{file.name} is of a message that is no more: run `make docs`")
        else:
            file.unlink()
            print(f"removed docs/messages/{file.name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
