from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import Result

from penstock.cli.definitions import located, read_texts
from penstock.cli.failure import CommandError, Finding

DOCUMENT = "kind: Agent\nmetadata: {name: a}\n"


def test_read_texts_of_a_folder_takes_yaml_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: Tool")
    (tmp_path / "a.yml").write_text("kind: Workflow")
    (tmp_path / "notes.txt").write_text("kind: [")
    found = [(Path(name).name, text) for name, text in read_texts([str(tmp_path)])]
    assert found == [("a.yml", "kind: Workflow"), ("b.yaml", "kind: Tool")]


def test_read_texts_of_what_is_no_text_names_it(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match=r"binary\.yaml: not UTF-8") as caught:
        read_texts([str(tmp_path)])
    assert caught.value.exit_code == 2


def test_located_findings_name_file_and_document() -> None:
    error = CommandError(
        "documents[1][0].spec.model: missing (and 3 more)",
        findings=(
            Finding("documents[1][0].spec.model", "missing"),
            Finding("documents[0]", "not YAML"),
            Finding("documents[0][2]", "no kind"),
            Finding("documents[10].x", "elsewhere"),
        ),
    )
    found = located(error, ["a.yaml", "b.yaml"])
    paths = [finding.path for finding in found.findings]
    assert paths == ["b.yaml#1: spec.model", "a.yaml", "a.yaml#3", "documents[10].x"]
    assert found.message == "b.yaml#1: spec.model: missing (and 3 more)"


def test_apply_from_standard_input_shows_what_changed(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    result = {"kind": "agent", "name": "a", "version": 2, "plan_digest": "f" * 64}
    gateway(lambda _: httpx.Response(200, json={"results": [{**result, "change": "updated"}]}))
    shown = run("apply", "-f", "-", input=DOCUMENT)
    assert shown.exit_code == 0
    assert shown.stdout.split()[-5:] == ["agent", "a", "v2", "updated", "f" * 12]
    sent = httpx.Response(200, content=requests[0].content).json()
    assert sent == {"documents": [DOCUMENT], "publish": True}


def test_apply_of_nothing_is_misuse(run: Callable[..., Result]) -> None:
    shown = run("apply", "-f", "-", input="\n")
    assert isinstance(shown.exception, CommandError)
    assert shown.exception.exit_code == 2
