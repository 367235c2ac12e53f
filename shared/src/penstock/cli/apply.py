"""``penstock apply``: documents from files to the registry, as they are written.

The registry reads the YAML, so that its findings name lines and fields alike.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from penstock.cli.api import Api
from penstock.cli.display import console, table
from penstock.cli.failure import MISUSED, CommandError, Finding
from penstock.target import Target

SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
STANDARD_INPUT: Final = "-"
CHANGE_STYLE: Final = {"created": "green", "updated": "yellow", "unchanged": "dim"}
_PLACE: Final = re.compile(r"documents\[(\d+)\](?:\[(\d+)\])?\.?(.*)", re.DOTALL)


def apply_files(target: Target, files: list[str], *, publish: bool) -> None:
    """Send all documents at once and show what came of each.

    Raises:
        CommandError: A file cannot be read, or the registry refused (nothing was stored then).
    """
    if not files:
        raise CommandError("give files or folders of documents", exit_code=MISUSED)
    texts = read_texts(files)
    if not any(text.strip() for _, text in texts):
        raise CommandError(f"no documents in {', '.join(files)}", exit_code=MISUSED)
    body = {"documents": [text for _, text in texts], "publish": publish}
    try:
        with Api(target) as api:
            applied = api.call("POST", "/v1/apply", body=body)
    except CommandError as error:
        raise located(error, [name for name, _ in texts]) from error
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


def read_texts(files: list[str]) -> list[tuple[str, str]]:
    """Return the name and the text of each file, of folders' YAML files, and standard input.

    Raises:
        CommandError: A file is missing or cannot be read.
    """
    texts: list[tuple[str, str]] = []
    for name in files:
        if name == STANDARD_INPUT:
            texts.append(("standard input", sys.stdin.read()))
            continue
        path = Path(name)
        members = [path]
        if path.is_dir():
            members = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        texts += [(str(member), _text(member)) for member in members]
    return texts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", exit_code=MISUSED) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: not UTF-8 text", exit_code=MISUSED) from error


def located(error: CommandError, names: list[str]) -> CommandError:
    """Say files instead of ``documents[n]`` in an error."""

    def place(path: str) -> str:
        if (found := _PLACE.fullmatch(path)) is None or int(found[1]) >= len(names):
            return path
        name = names[int(found[1])]
        if found[2] is not None:
            name += f"#{int(found[2]) + 1}"
        return f"{name}: {found[3]}" if found[3] else name

    findings = tuple(Finding(place(path), said, allowed) for path, said, allowed in error.findings)
    message = error.message
    for before, after in zip(error.findings, findings, strict=True):
        message = message.replace(before.path, after.path) if before.path else message
    return CommandError(message, findings=findings, exit_code=error.exit_code)
