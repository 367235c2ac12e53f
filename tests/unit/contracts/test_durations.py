from __future__ import annotations

import pytest

from penstock.contracts.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("PT1H30M", 5400.0),
        ("30", 30.0),
        ("0.5", 0.5),
        ("P2D", 172_800.0),
        ("P1W", 604_800.0),
        ("P1DT12H", 129_600.0),
        ("PT0.25S", 0.25),
        ("90s", 90.0),
        ("2 h", 7200.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        (" 500ms ", 0.5),
        ("3d", 259_200.0),
    ],
)
def test_parse_duration_reads_every_form(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "soon", "P", "PT", "P1DT", "-5s", "1h-30m", "h", "1x", "٣s", "1.s", "nan", "inf", "1e3"],
)
def test_parse_duration_of_other_text_is_none(text: str) -> None:
    assert parse_duration(text) is None
