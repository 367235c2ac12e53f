"""The guide to the Python client, run as it stands."""

import re
from pathlib import Path

import pytest

from tests.support.installation import Installation

GUIDE = Path(__file__).parents[2] / "docs/client.md"


def test_examples_of_the_guide_print_what_it_shows(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PENSTOCK_URL", installation.url)
    names: dict[str, object] = {}
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", text, re.DOTALL)
    assert len(blocks) == 6
    for code, shown in blocks:
        exec(compile(code, str(GUIDE), "exec"), names)
        printed = capsys.readouterr().out
        if shown:
            assert printed == shown
