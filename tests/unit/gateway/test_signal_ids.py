"""Ids of signals: a sender's key, unless it could be taken for an answer."""

from __future__ import annotations

import re

import pytest

from penstock.contracts.ids import TOKEN_PATTERN, answer_signal_id
from penstock_gateway.runs.signals import control_signal_id, signal_id_of


@pytest.mark.parametrize("key", ["delivery-17", "x" * 64, "approvals-1"])
def test_signal_id_of_a_token_is_the_token(key: str) -> None:
    assert signal_id_of(key) == key


@pytest.mark.parametrize(
    "key",
    [
        answer_signal_id("approval", "pay-a", "d"),
        answer_signal_id("tool_result", "ask", "d"),
        pytest.param(control_signal_id("pause"), id="drawn control id"),
        "m-0123",
        "key-0123",
        "with spaces",
        "a.b",
        "x" * 65,
    ],
)
def test_signal_id_of_any_other_key_is_a_token_of_its_own(key: str) -> None:
    found = signal_id_of(key)
    assert found.startswith("key-")
    assert found != key
    assert found == signal_id_of(key)
    assert re.fullmatch(TOKEN_PATTERN, found)


def test_signal_id_without_a_key_is_a_new_one() -> None:
    assert signal_id_of(None) != signal_id_of(None)
