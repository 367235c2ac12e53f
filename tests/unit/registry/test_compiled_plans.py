"""What the registry compiles passes the checks of plans that were imported."""

from __future__ import annotations

import re
from pathlib import Path

from penstock.contracts.plan import PLAN
from penstock.runs.plan_checks import plan_faults
from penstock_registry.core.catalog import Catalog
from penstock_registry.core.compiler import compile_document
from penstock_registry.core.documents import Document
from penstock_registry.core.reading import parse_documents

ROOT = Path(__file__).parents[3]
FILES = sorted([*ROOT.glob("examples/**/*.yaml")])
PAGES = sorted(ROOT.glob("docs/*.md"))


def texts() -> list[str]:
    blocks = [
        text
        for page in PAGES
        for text in re.findall(
            r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        if "apiVersion" in text and "spec: {}" not in text
    ]
    return [*(file.read_text(encoding="utf-8") for file in FILES), *blocks]


def test_plans_of_the_examples_and_of_the_pages_have_no_faults() -> None:
    known = parse_documents(texts())
    catalog = Catalog.of(placed.document for placed in known.placed)

    runnables: list[Document] = [
        *catalog.agents.values(),
        *catalog.networks.values(),
        *catalog.workflows.values(),
    ]
    assert len(runnables) >= 20
    for document in runnables:
        plan = PLAN.validate_json(compile_document(document, catalog).body)
        assert list(plan_faults(plan)) == [], document.metadata.name
