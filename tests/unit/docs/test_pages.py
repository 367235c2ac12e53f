"""What the documentation says is compared with the code: links, codes, paths, commands, names."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from penstock.cli.app import app as command_line
from penstock.cli.lazy import LazyGroup
from penstock_gateway.app import create_app
from penstock_gateway.core.problems import CODE_OF_STATUS, STATUS_OF_CODE
from penstock_gateway.settings import GatewaySettings
from penstock_registry.core.catalog import Catalog
from penstock_registry.core.checks import all_faults
from penstock_registry.core.reading import parse_documents

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/adr/*.md"),
        *ROOT.glob("deploy/**/*.md"),
    ]
)
FAMILIES = {"RejectedError", "TransientError", "ConflictError", "InvariantError"}
RESERVED = {"not_acceptable", "run_ended", "already_exists", "rate_limited", "host_refused"}
"""Codes that have a status before anything raises them."""
KINDS = r"/v1/(tools|workflows|networks|webhooks|schedules)(?=/|$)"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def anchors(page: Path) -> set[str]:
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-")
        for title in titles
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_page_lead_somewhere(page: Path) -> None:
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")}
    assert {page for page in pages if f"]({page})" not in text} == set()


def codes_in_source() -> Iterator[str]:
    for file in [*ROOT.glob("shared/src/**/*.py"), *ROOT.glob("services/*/src/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            given: list[ast.expr] = []
            if name in FAMILIES:
                given = node.args[:1]
            elif name == "ErrorInfo":
                given = [word.value for word in node.keywords if word.arg == "code"]
            for value in given:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def test_errors_page_has_every_code() -> None:
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    known = {*codes_in_source(), *STATUS_OF_CODE, *CODE_OF_STATUS.values()} - RESERVED
    models = importlib.import_module("penstock_agent_runner.providers")._FAMILIES
    known |= {code for _, _, code in models}
    missing = {code for code in known if f"`{code}`" not in text}
    assert missing == set()


def test_errors_page_names_statuses_as_the_gateway_does() -> None:
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \| \w+ \| (\d{3}) \|", text, re.MULTILINE)
    assert len(rows) > 20
    for names, status in rows:
        for code in re.findall(r"`(\w+)`", names):
            if code in STATUS_OF_CODE:
                assert (code, STATUS_OF_CODE[code]) == (code, int(status))


def normal(path: str) -> str:
    path = path.split("?", maxsplit=1)[0]
    return re.sub(KINDS, "/v1/agents", re.sub(r"\{[^}]*\}|:\w+", "{}", path))


@lru_cache(maxsize=1)
def api_paths() -> set[str]:
    paths = create_app(GatewaySettings()).openapi()["paths"]
    return {normal(path) for path in paths} | {"/metrics"}


def mentioned(text: str) -> set[str]:
    return {normal(path) for path in re.findall(r"[` ](/[a-z][\w/{}.:-]*)", text)}


def test_http_page_has_every_path_of_the_api() -> None:
    text = (ROOT / "docs/http-api.md").read_text(encoding="utf-8")
    assert api_paths() - mentioned(text) == set()


def test_http_page_names_no_path_that_is_not_there() -> None:
    own, _, table = (
        (ROOT / "docs/http-api.md").read_text(encoding="utf-8").partition("## Where the endpoints")
    )
    fragments = {"/docs", "/openapi.json", "/events", "/versions"}
    assert mentioned(own) - api_paths() - fragments == set()
    for row in re.findall(r"^\| (.*) \|$", table, re.MULTILINE):
        there, here = row.split(" | ", maxsplit=1)
        claimed = mentioned(here) - {"/v1", "/publish"}
        if here.startswith("the same"):
            claimed |= mentioned(there)
        assert claimed - api_paths() - fragments == set(), row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_of_page_compiles(page: Path) -> None:
    examples = [*ROOT.glob("examples/*.yaml"), ROOT / "examples/runners/word-count.yaml"]
    known = parse_documents(file.read_text(encoding="utf-8") for file in examples)
    assert all_faults(known, Catalog()) == []
    catalog = Catalog.of(placed.document for placed in known.placed)
    for text in [*blocks(page, "yaml"), *heredocs(page)]:
        if "apiVersion" not in text or "spec: {}" in text:
            yaml.safe_load(text)
        else:
            assert all_faults(parse_documents([text]), catalog) == []


def heredocs(page: Path) -> list[str]:
    return [
        text
        for script in blocks(page, "bash")
        for text in re.findall(r"<<'EOF'\n(.*?)^EOF$", script, re.MULTILINE | re.DOTALL)
    ]


def commands(page: Path) -> Iterator[list[str]]:
    for script in [*blocks(page, "bash"), *blocks(page, "console")]:
        plain = re.sub(r"<<'EOF'\n.*?^EOF$", "", script, flags=re.MULTILINE | re.DOTALL).replace(
            "\\\n", " "
        )
        for line in plain.splitlines():
            for found in re.finditer(
                r"(?:^|[($ ])penstock ((?:[a-z-]|\s|\$|'[^']*'|[^|)#;&])*)", line
            ):
                words = shlex.split(found[1], comments=True)
                if words:
                    yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_page_exist(page: Path) -> None:
    for words in commands(page):
        command: Any = typer.main.get_command(command_line)
        rest = list(words)
        while isinstance(command, TyperGroup):
            name = rest.pop(0)
            assert name in command.commands, words
            if isinstance(command, LazyGroup):
                command = command.load(name)
            else:
                command = command.commands[name]
        options = {
            name
            for parameter in command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert given - options - {"--help"} == set(), words


def test_settings_that_pages_name_exist() -> None:
    known = set(re.findall(r"PENSTOCK_[A-Z_]+", (ROOT / "docs/settings.md").read_text("utf-8")))
    source = "".join(file.read_text("utf-8") for file in ROOT.glob("shared/src/penstock/**/*.py"))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"\bPENSTOCK_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8"))
        if not name.startswith("PENSTOCK_SECRET_")
    }
    assert {name for name in named - known if f'"{name}"' not in source} == set()


def test_metrics_that_pages_name_exist() -> None:
    files = [*ROOT.glob("shared/src/**/*.py"), *ROOT.glob("services/*/src/**/*.py")]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(penstock_[a-z_]+_(?:total|seconds|messages|bytes))", text))
    assert len(named) > 3
    assert {name for name in named if f'"{name}"' not in source} == set()


def test_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(
            r"(?:`|^)make ([a-z][a-z0-9-]*)", page.read_text("utf-8"), re.MULTILINE
        )
    }
    assert named - targets == set()


@pytest.mark.parametrize("page", ["README.md", "docs/runners.md"])
def test_runner_in_page_is_the_example(page: str) -> None:
    example = (ROOT / "examples/runners/sdk_runner.py").read_text(encoding="utf-8")
    shown = [text for text in blocks(ROOT / page, "python") if "Runner(" in text]
    assert [example.partition('"""\n\n')[2]] == shown


def test_handler_tests_in_page_are_those_of_the_example() -> None:
    example = (ROOT / "examples/runners/test_sdk_runner.py").read_text(encoding="utf-8")
    page = (ROOT / "docs/runners.md").read_text(encoding="utf-8")
    section = page.partition("### Test a handler")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    assert [block for block in blocks if block not in example] == []


def test_workflow_tests_in_page_are_those_of_the_example() -> None:
    example = (ROOT / "examples/workflows/test_orders.py").read_text(encoding="utf-8")
    page = (ROOT / "docs/testing-workflows.md").read_text(encoding="utf-8")
    found = re.findall(r"```(?:python|yaml)\n(.*?)```", page, re.DOTALL)
    assert len(found) == 4
    assert [block for block in found if block not in example] == []


def test_examples_are_all_listed() -> None:
    index = ROOT / "examples/README.md"
    linked = set(re.findall(r"\]\(([^)]+)\)", index.read_text(encoding="utf-8")))
    files = {
        str(file.relative_to(index.parent))
        for kind in ("yaml", "py", "mjs")
        for file in index.parent.rglob(f"*.{kind}")
        if "node_modules" not in file.parts
    }
    assert files | {"runners/package.json"} == linked


def test_decisions_are_all_listed() -> None:
    index = (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")
    pages = {file.name for file in ROOT.glob("docs/adr/0*.md")}
    assert {name for name in pages if f"({name})" not in index} == set()
    for name in pages:
        text = (ROOT / "docs/adr" / name).read_text(encoding="utf-8")
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "Alternatives"], name
        assert text.startswith(f"# {name[:4]}. "), name


def test_paths_of_concepts_exist() -> None:
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:docs|services|shared|tests)/[^`]*)`", text)
    assert len(paths) > 40
    assert {path for path in paths if not (ROOT / path).exists()} == set()
