from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import Result

from penstock.cli.definitions import located, read_documents
from penstock.cli.failure import CommandError, Finding

DOCUMENT = "kind: Agent\nmetadata: {name: a}\n"


def test_read_documents_of_a_folder_takes_yaml_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: Tool")
    (tmp_path / "a.yml").write_text("kind: Workflow")
    (tmp_path / "notes.txt").write_text("kind: [")
    found = [(Path(name).name, text) for name, text in read_documents([str(tmp_path)])]
    assert found == [("a.yml", "kind: Workflow"), ("b.yaml", "kind: Tool")]


def test_read_documents_of_what_is_no_text_names_it(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match=r"binary\.yaml: not UTF-8") as caught:
        read_documents([str(tmp_path)])
    assert caught.value.exit_code == 2


def test_read_documents_takes_json_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": "\\ud83d\\ude00", "n": 1e3, "no": "on"}', "utf-8-sig")
    (tmp_path / "b.json").write_text("[{}, []]")
    (tmp_path / "c.yaml").write_text('{"a": "\\ud83d\\ude00"}')
    (tmp_path / "d.yaml").write_text("{a: 1}")
    found = [(Path(name).name, one) for name, one in read_documents([str(tmp_path)])]
    assert found == [
        ("a.json", {"a": "\U0001f600", "n": 1000.0, "no": "on"}),
        ("b.json#1", {}),
        ("b.json#2", []),
        ("c.yaml", {"a": "\U0001f600"}),
        ("d.yaml", "{a: 1}"),
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"a": 1,\n "a": 2}', 'not JSON: Detected duplicate key "a" at line 2 column 6'),
        (b'{"a": NaN}', "not JSON: expected value at line 1 column 7"),
        (
            b'{"a": [1, -1e400]}',
            "not JSON: a[1] is not a finite number (allowed: numbers from -1.8e+308 to 1.8e+308)",
        ),
        (b'{"a": "\\ud83d"}', "not JSON: unexpected end of hex escape at line 1 column 14"),
        (b"a: 1", "not JSON: expected value at line 1 column 1"),
        (b'{"a": 1,}', "not JSON: trailing comma at line 1 column 9"),
        ("{}".encode("utf-16"), "not UTF-8 but UTF-16"),
        ("{}".encode("utf-32"), "not UTF-8 but UTF-32"),
        (b'{"\xe9": 1}', "not UTF-8: byte 0xe9 at line 1 column 3"),
    ],
)
def test_read_documents_refuses_json_that_is_none_with_the_place(
    tmp_path: Path, body: bytes, words: str
) -> None:
    (tmp_path / "x.json").write_bytes(body)
    with pytest.raises(CommandError) as caught:
        read_documents([str(tmp_path / "x.json")])
    assert caught.value.message == f"{tmp_path}/x.json: {words}"
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
