"""The check of language finds what it is for, and leaves questions and code alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[3] / "docs/language.py"


def load_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("phrases", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = load_check()


def found(text: str) -> set[str]:
    return {name for name, pattern in CHECK.FAMILIES.items() if pattern.search(text)}


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("Tell whether a run is open.", "told, said, tell"),
        ("What is stored decides.", "what is, was, came"),
        ("It waits for somebody's answer.", "somebody, nobody"),
        ("The run goes on.", "goes on"),
        ("A subject of its own.", "of its own"),
        ("The engine states the result.", "stated"),
        ("How the phase came out.", "came of, came out"),
    ],
)
def test_phrase_of_family_is_found(text: str, family: str) -> None:
    assert found(text) == {family}


@pytest.mark.parametrize(
    "text", ["What is a run?", "The states of a run.", "Return whether a run is open."]
)
def test_plain_text_has_no_phrase(text: str) -> None:
    assert found(text) == set()


def test_passages_of_module_have_areas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shared/src/module.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        '"""Docstring of it."""\n'
        "# A comment.\n"
        "@app.command(help='Help of it.')\n"
        "def command() -> None:\n"
        '    """Help, too."""\n'
        "    raise RejectedError('code', f'it has {count} parts')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(CHECK, "ROOT", tmp_path)
    areas = [(each.area, each.line, each.text) for each in CHECK.source_passages(file)]
    assert sorted(areas) == [
        ("comments", 2, "A comment."),
        ("docstrings", 1, "Docstring of it."),
        ("help", 3, "Help of it."),
        ("help", 5, "Help, too."),
        ("texts", 6, "it has "),
    ]


def test_passages_of_page_leave_code_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("One.\n\n```text\ntold\n```\n\nTwo `told` words.\n", encoding="utf-8")
    parts = [(part.line, part.text.strip()) for part in CHECK.guide_passages(page)]
    assert parts == [(1, "One."), (7, "Two CODE words.")]
