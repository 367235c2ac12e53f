from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import Result

from penstock.cli.apply import located, read_documents
from penstock.cli.failure import CommandError, Finding

DOCUMENT = "kind: Agent\nmetadata: {name: a}\n"


def test_read_documents_of_a_folder_takes_yaml_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: Tool\n---\nkind: Agent\n---\n")
    (tmp_path / "a.yml").write_text("kind: Workflow\n")
    (tmp_path / "notes.txt").write_text("kind: [")
    documents, places = read_documents([str(tmp_path)])
    assert [document["kind"] for document in documents] == ["Workflow", "Tool", "Agent"]
    assert [Path(place).name for place in places] == ["a.yml", "b.yaml#1", "b.yaml#2"]


def test_read_documents_with_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("kind: Agent\nspec: [1, 2\nother: x\n")
    with pytest.raises(CommandError, match=r"broken\.yaml:3: ") as caught:
        read_documents([str(file)])
    assert caught.value.exit_code == 2


def test_located_findings_name_the_file() -> None:
    error = CommandError(
        "invalid",
        findings=(
            Finding("documents[1].spec.model", "missing"),
            Finding("documents[0]", "no kind"),
            Finding("documents[10].x", "elsewhere"),
        ),
    )
    paths = [finding.path for finding in located(error, ["a.yaml", "b.yaml"]).findings]
    assert paths == ["b.yaml: spec.model", "a.yaml", "documents[10].x"]


def test_apply_from_standard_input_shows_what_changed(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    result = {"kind": "agent", "name": "a", "version": 2, "plan_digest": "f" * 64}
    gateway(lambda _: httpx.Response(200, json={"results": [{**result, "change": "updated"}]}))
    shown = run("apply", "-f", "-", input=DOCUMENT)
    assert shown.exit_code == 0
    assert shown.stdout.split()[-5:] == ["agent", "a", "v2", "updated", "f" * 12]
    sent = httpx.Response(200, content=requests[0].content).json()
    assert sent == {"documents": [{"kind": "Agent", "metadata": {"name": "a"}}], "publish": True}


def test_apply_of_nothing_is_misuse(run: Callable[..., Result]) -> None:
    shown = run("apply", "-f", "-", input="---\n")
    assert isinstance(shown.exception, CommandError)
    assert shown.exception.exit_code == 2
