"""Golden logs, of all releases: the archive says of each run what its fold says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.support.archived import assert_archived
from tests.support.histories import Message
from tests.unit.archive.fakes import FakeLog
from tests.unit.archive.test_projector import open_archive, project

LOGS = Path(__file__).parents[2] / "contracts" / "golden" / "logs"
FILES = sorted(LOGS.glob("*/*.ndjson"))


def read_log(file: Path) -> list[Message]:
    """Return subjects and bodies; their sequences are 1, 2, 3 and so on."""
    entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    return [(entry["subject"], json.dumps(entry["fact"]).encode()) for entry in entries]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
async def test_projection_of_a_golden_log_equals_the_fold_of_each_of_its_beginnings(
    tmp_path: Path, file: Path
) -> None:
    whole = read_log(file)
    async with open_archive(tmp_path) as (store, engine):
        for length in range(1, len(whole) + 1):
            await project(FakeLog(whole[:length]), store, random.Random(length))
            await assert_archived(engine, whole[:length])


def test_golden_logs_of_the_whole_language_are_there() -> None:
    assert len([file for file in FILES if file.parent.name == "plan-3"]) >= 12
