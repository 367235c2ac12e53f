"""Schedules as documents: their faults with places, and what engines are given."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts.rpc import DocumentKind
from penstock.contracts.schedules import SCHEDULE_RECORD, ScheduleRecord
from penstock_registry.core.catalog import Catalog, dependants, uses
from penstock_registry.core.documents import Document
from penstock_registry.core.reading import parse_documents
from tests.unit.registry.builders import agent, compiled, document, faults_of


def schedule(**spec: Any) -> Document:
    return document("Schedule", "nightly", {"target": "helper", **spec})


def test_schedule_compiles_to_what_engines_read() -> None:
    given = schedule(
        target="helper@stable",
        cron="0 9 * * MON-FRI",
        timezone="Europe/Berlin",
        input={"day": "{{ schedule.scheduled_at }}"},
        missed="all",
        missed_limit=7,
        grace="1m",
        jitter="30s",
        starts_at="2026-05-01T00:00:00+02:00",
        tags={"team": "ops"},
        limits={"max_cost_usd": 1.5, "timeout_seconds": 60},
        priority=3,
    )
    record = SCHEDULE_RECORD.validate_json(compiled(given, agent()).body)
    assert (record.target, record.selector) == ("helper", "stable")
    assert (record.cron, record.timezone) == ("0 9 * * MON-FRI", "Europe/Berlin")
    assert (record.missed, record.missed_limit) == ("all", 7)
    assert (record.grace_seconds, record.jitter_seconds, record.priority) == (60, 30, 3)
    assert (record.limits.max_cost_usd, record.limits.timeout_seconds) == (1.5, 60)
    assert record.starts_at is not None
    assert record.starts_at.isoformat() == "2026-05-01T00:00:00+02:00"
    assert compiled(given, agent()) == compiled(given, agent())


def test_schedule_with_an_interval_needs_no_more_than_its_target() -> None:
    record = SCHEDULE_RECORD.validate_json(compiled(schedule(every="15m"), agent()).body)
    assert record == ScheduleRecord(name="nightly", target="helper", every_seconds=900)


@pytest.mark.parametrize(
    ("spec", "path", "allowed"),
    [
        ({}, "spec", "exactly one of cron, every"),
        ({"cron": "@daily", "every": "1h"}, "spec", "exactly one of cron, every"),
        ({"cron": "61 * * * *"}, "spec.cron", "0 to 59"),
        ({"cron": "0 0 30 2 *"}, "spec.cron", "a day that its months have"),
        ({"cron": "@daily", "timezone": "Berlin"}, "spec.timezone", "Europe/Berlin"),
        ({"every": "500ms"}, "spec.every", ">= 1s"),
        ({"every": "10s", "jitter": "11s"}, "spec.jitter", "<= 10 s"),
        ({"cron": "@daily", "jitter": "2h"}, "spec.jitter", "<= 3600 s"),
        ({"every": "1h", "target": "nobody"}, "spec.target", "helper"),
        (
            {"every": "1h", "input": "{{ steps.a.output }}"},
            "spec.input",
            "schedule",
        ),
        (
            {"every": "1h", "input": {"at": "{{ schedule.time }}"}},
            "spec.input.at",
            "name, scheduled_at, tick",
        ),
        (
            {
                "every": "1h",
                "starts_at": "2026-05-01T00:00:00Z",
                "ends_at": "2026-05-01T00:00:00Z",
            },
            "spec.ends_at",
            "after starts_at",
        ),
    ],
)
def test_fault_of_a_schedule_has_its_place_and_what_would_do(
    spec: dict[str, Any], path: str, allowed: str
) -> None:
    (fault,) = faults_of(schedule(**spec), agent())
    assert fault.path == path
    assert allowed in (fault.allowed or "")


def test_all_faults_of_a_schedule_are_told_at_once() -> None:
    faults = faults_of(schedule(target="nobody", cron="x", timezone="Mars/Base", every="1s"))
    assert [fault.path for fault in faults] == [
        "spec.target",
        "spec",
        "spec.cron",
        "spec.timezone",
    ]


def test_yaml_may_write_times_with_or_without_quotes() -> None:
    text = """
apiVersion: penstock/v1
kind: Schedule
metadata: {name: nightly}
spec:
  target: helper
  every: 1h
  starts_at: 2026-05-01T00:00:00Z
  ends_at: "2026-06-01T00:00:00Z"
"""
    parsed = parse_documents((text,))
    assert not parsed.faults
    (placed,) = parsed.placed
    record = SCHEDULE_RECORD.validate_json(compiled(placed.document, agent()).body)
    assert record.starts_at is not None
    assert record.ends_at is not None
    assert (record.ends_at - record.starts_at).days == 31


def test_schedule_uses_its_target_and_is_no_dependant_of_it() -> None:
    given = schedule(target="helper@3", every="1h")
    assert (DocumentKind.AGENT, "helper") in uses(given)
    catalog = Catalog.of([agent(), given])
    assert dependants(catalog, [(DocumentKind.AGENT, "helper")]) == []
    assert list(catalog.documents())[-1] == given
