"""``penstock apply``: documents from files to the registry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml

from penstock.cli.api import Api
from penstock.cli.display import console, table
from penstock.cli.failure import MISUSED, CommandError, Finding
from penstock.cli.target import Target

SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
STANDARD_INPUT: Final = "-"
CHANGE_STYLE: Final = {"created": "green", "updated": "yellow", "unchanged": "dim"}


def apply_files(target: Target, files: list[str], *, publish: bool) -> None:
    """Send all documents at once and show what came of each.

    Raises:
        CommandError: A file cannot be read, or the registry refused (nothing was stored then).
    """
    documents, places = read_documents(files)
    if not documents:
        raise CommandError(f"no documents in {', '.join(files)}", exit_code=MISUSED)
    try:
        with Api(target) as api:
            body = {"documents": documents, "publish": publish}
            applied = api.call("POST", "/v1/apply", body=body)
    except CommandError as error:
        raise located(error, places) from error
    rows = [
        [
            result["kind"],
            result["name"],
            f"v{result['version']}" if result.get("version") else "not published",
            f"[{CHANGE_STYLE.get(result['change'], '')}]{result['change']}[/]",
            (result.get("plan_digest") or "")[:12],
        ]
        for result in applied["results"]
    ]
    console().print(table(("kind", "name", "version", "change", "plan"), rows))


def read_documents(files: list[str]) -> tuple[list[Any], list[str]]:
    """Return all documents of files, folders and standard input, and where each stands.

    Raises:
        CommandError: A file is missing, or is no YAML; names the line.
    """
    documents: list[Any] = []
    places: list[str] = []
    for name, text in _texts(files):
        try:
            found = [document for document in yaml.safe_load_all(text) if document is not None]
        except yaml.YAMLError as error:
            raise CommandError(_complaint(name, error), exit_code=MISUSED) from error
        documents += found
        places += [name if len(found) == 1 else f"{name}#{i}" for i in range(1, len(found) + 1)]
    return documents, places


def _texts(files: list[str]) -> list[tuple[str, str]]:
    texts: list[tuple[str, str]] = []
    for name in files:
        if name == STANDARD_INPUT:
            texts.append(("standard input", sys.stdin.read()))
            continue
        path = Path(name)
        try:
            members = [path]
            if path.is_dir():
                members = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            texts += [(str(member), member.read_text(encoding="utf-8")) for member in members]
        except OSError as error:
            raise CommandError(f"{name}: {error.strerror}", exit_code=MISUSED) from error
        except UnicodeDecodeError as error:
            raise CommandError(f"{name}: not UTF-8 text", exit_code=MISUSED) from error
    return texts


def _complaint(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not YAML"
    return f"{name}: {problem}" if mark is None else f"{name}:{mark.line + 1}: {problem}"


def located(error: CommandError, places: list[str]) -> CommandError:
    """Say files instead of ``documents[n]`` in an error's findings."""
    findings = []
    for finding in error.findings:
        path = finding.path
        for index, place in enumerate(places):
            stem = f"documents[{index}]"
            if path == stem or path.startswith((f"{stem}.", f"{stem}[")):
                path = f"{place}: {path[len(stem) :].lstrip('.')}".removesuffix(": ")
                break
        findings.append(Finding(path, finding.message, finding.allowed))
    return CommandError(error.message, findings=tuple(findings), exit_code=error.exit_code)
