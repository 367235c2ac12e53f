"""The AsyncAPI document holds together and names what the code uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock import catalogue as schemas
from penstock.contracts import subjects

PAGE = Path(__file__).parents[3] / "docs" / "asyncapi.yaml"
SAMPLES = {
    "shard": "3",
    "decision": "2",
    "attempt": "1",
    "run": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "kind": "tool",
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(PAGE.read_text(encoding="utf-8"))
    return loaded


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(found := value.get("$ref"), str):
            yield found
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_references_of_the_document_resolve(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_channels_of_the_log_are_subjects_of_facts(document: dict[str, Any]) -> None:
    channels = [
        channel
        for channel in document["channels"].values()
        if channel.get("x-stream") == subjects.RUNS
    ]
    addresses = [
        re.sub(r"\{(\w+)\}", lambda found: SAMPLES.get(found[1], found[1]), channel["address"])
        for channel in channels
    ]
    events = {subjects.parse_fact(address).event for address in addresses}
    assert events == {"invoke", "result", "signal", "cancel", "step", "state", "end"}


def test_every_fact_is_a_message_of_the_document(document: dict[str, Any]) -> None:
    assert {fact.name for fact in schemas.FACTS} <= set(document["components"]["messages"])


def test_parameters_of_addresses_are_described(document: dict[str, Any]) -> None:
    for name, channel in document["channels"].items():
        named = set(re.findall(r"\{(\w+)\}", channel["address"] or ""))
        assert named == set(channel.get("parameters", {})), name
