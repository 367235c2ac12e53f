"""Counts phrases that technical English does without, and fails where an area has too many.

A family of phrases is allowed fewer than `LIMIT` occurrences per 10,000 words of an area. Areas are
the guides, docstrings (with descriptions of fields), comments, help of the command line, and texts:
errors and all other messages in the source. With paths, each occurrence in them is printed.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
LIMIT: Final = 2
"""Occurrences of one family per 10,000 words from which the check fails."""
PER: Final = 10_000
FAMILIES: Final = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "told, said, tell": r"\b(?:told|tells?|telling|said)\b",
        # A question ("What is a run?") is fine: its sentence ends with a question mark.
        "what is, was, came": r"\bwhat (?:is|are|was|were|has|have|had|comes|came)\b(?![^.:;]*\?)",
        "somebody, nobody": r"\b(?:somebody|nobody|anybody|whoever|whomever)(?:'s)?\b",
        "goes on": r"\b(?:go|goes|going|gone|went) on\b",
        "of its own": r"\bof (?:its|their|his|her|our|your|one's) own\b",
        "stated": r"\b(?:stated|stating|to state|states (?:it|them|that|the|an?|what|how|why))\b",
        "came of, came out": r"\b(?:becomes?|became|comes?|came) of\b|\bc(?:a|o)mes? out\b",
    }.items()
}
GUIDES: Final = ("*.md", "docs/*.md", "docs/adr/*.md", "bench/*.md", "deploy/**/*.md")
SOURCE: Final = ("shared/src", "services", "docs", "bench", "examples")
PRODUCT: Final = ("shared/src", "services")
"""Only these speak to users."""
AREAS: Final = ("guides", "docstrings", "comments", "help", "texts")


class Passage(NamedTuple):
    """A piece of text of one area and the line on which it begins."""

    area: str
    file: Path
    line: int
    text: str


def guide_passages(file: Path) -> Iterator[Passage]:
    """Yield the paragraphs of a page, without code."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", _blank, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "CODE", text)
    line = 1
    for paragraph in re.split(r"(\n\s*\n|\n(?=\s*[-|]))", text):
        if paragraph.strip():
            yield Passage("guides", file, line, paragraph)
        line += paragraph.count("\n")


def _blank(block: re.Match[str]) -> str:
    return "\n" * block[0].count("\n")


def source_passages(file: Path) -> Iterator[Passage]:
    """Yield docstrings, comments, help and other texts of a module."""
    source = file.read_text(encoding="utf-8")
    product = file.relative_to(ROOT).as_posix().startswith(PRODUCT)
    yield from _comments(file, source)
    seen: set[int] = set()
    for area, node in _strings(ast.parse(source)):
        if id(node) in seen:
            continue
        seen.add(id(node))
        text = re.sub(r"``[^`]*``", "CODE", str(node.value))
        if area == "texts" and (not product or len(text.split()) < 2):
            continue
        yield Passage(area, file, node.lineno, text)


def _strings(tree: ast.Module) -> Iterator[tuple[str, ast.Constant]]:
    """Yield each string once for each area that claims it, the strongest claim first."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_command(node):
            yield from (("help", part) for part in _constants(node.body[0]))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield from (("docstrings", part) for part in _constants(node))
        if isinstance(node, ast.keyword) and node.arg in ("help", "short_help", "epilog"):
            yield from (("help", part) for part in _constants(node.value))
        if isinstance(node, ast.keyword) and node.arg == "description":
            yield from (("docstrings", part) for part in _constants(node.value))
    yield from (("texts", part) for part in _constants(tree))


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function is a command of Typer, whose docstring is its help."""
    calls = [deco.func for deco in node.decorator_list if isinstance(deco, ast.Call)]
    names = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    return bool(names & {"command", "callback"}) and isinstance(node.body[0], ast.Expr)


def _constants(node: ast.AST) -> Iterator[ast.Constant]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part


def _comments(file: Path, source: str) -> Iterator[Passage]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Passage("comments", file, token.start[0], token.string.lstrip("#! "))


def passages(paths: list[Path]) -> Iterator[Passage]:
    """Yield all passages of the project, or those of the files below some paths."""
    guides = {file for pattern in GUIDES for file in ROOT.glob(pattern)}
    modules = {file for folder in SOURCE for file in (ROOT / folder).rglob("*.py")}
    for file in sorted(guides | modules):
        if paths and not any(file == path or path in file.parents for path in paths):
            continue
        yield from guide_passages(file) if file.suffix == ".md" else source_passages(file)


def main() -> int:
    """Print the table; with `--report`, each occurrence too, and never fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="print occurrences; do not fail")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; default: all")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.paths]
    words: Counter[str] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    for area, file, line, text in passages(paths):
        words[area] += len(text.split())
        for family, pattern in FAMILIES.items():
            for match in pattern.finditer(text):
                found[area, family] += 1
                if arguments.report:
                    at = line + text.count("\n", 0, match.start())
                    start = text.rfind("\n", 0, match.start()) + 1
                    shown = " ".join(
                        text[max(start, match.start() - 40) : match.end() + 30].split()
                    )
                    print(f"{file.relative_to(ROOT)}:{at}: {area}: {shown}")
    failed = _print_table(words, found)
    return 1 if failed and not arguments.report else 0


def _print_table(words: Counter[str], found: Counter[tuple[str, str]]) -> bool:
    """Print occurrences and rates; return whether a binding area has too many."""
    failed = False
    print(f"{f'per {PER:,} words (count)':24}" + "".join(f"{area:>16}" for area in AREAS))
    print(f"{'words':24}" + "".join(f"{words[area]:>16,}" for area in AREAS))
    for family in FAMILIES:
        cells = []
        for area in AREAS:
            count = found[area, family]
            rate = PER * count / max(words[area], 1)
            failed |= rate >= LIMIT
            cells.append(f"{rate:.1f} ({count})" if count else "-")
        print(f"{family:24}" + "".join(f"{cell:>16}" for cell in cells))
    return failed


if __name__ == "__main__":
    sys.exit(main())
