"""The templates of ``examples/templates``: each is applied as it is, run, and does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.installation import EXAMPLES, Installation
from tests.support.waiting import eventually

TEMPLATES = sorted((EXAMPLES / "templates").glob("*.yaml"))


@pytest.fixture(scope="module")
def templates(installation: Installation) -> Installation:
    """Apply the templates as the command line does."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli.app", "apply", str(EXAMPLES / "templates")],
        env={**os.environ, "PENSTOCK_URL": installation.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return installation


def finished(run: dict[str, Any]) -> Any:
    assert run["status"] == "done", run
    return run["output"]


def test_templates_are_at_least_five_and_applying_again_changes_nothing(
    templates: Installation,
) -> None:
    again = templates.apply(*(file.read_text() for file in TEMPLATES))

    assert len(TEMPLATES) >= 5
    assert {result["change"] for result in again} == {"unchanged"}


def test_supervisor_asks_the_specialist_and_answers_itself(templates: Installation) -> None:
    output = finished(templates.start("support-desk", "Why was I charged twice?", wait=30))

    assert output["text"].startswith("What billing says: ")
    assert "released within two days" in output["text"]


def test_pipeline_hands_each_text_on(templates: Installation) -> None:
    output = finished(templates.start("article-pipeline", {"topic": "solar parks"}, wait=30))

    assert output["article"].startswith("Edited. A draft along these lines: 1. ")
    assert output["article"].endswith("(solar parks)")


def test_pipeline_refuses_an_input_that_does_not_fit(templates: Installation) -> None:
    answer = templates.client.post(
        "/v1/runs", json={"name": "article-pipeline", "input": {"topic": 7, "size": 1}}
    )

    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_input"
    assert [(one["path"], one["allowed"]) for one in answer.json()["errors"]] == [
        ("input", None),
        ("input.topic", "string"),
    ]


def test_parallel_opinions_are_summed_up(templates: Installation) -> None:
    output = finished(templates.start("second-opinions", {"proposal": "four days"}, wait=30))

    assert output.startswith("In sum: It pays off within a year.")
    assert output.rstrip().endswith("Customers must be told in time.")


def test_tool_augmented_agent_cannot_change_what_the_system_gives(
    templates: Installation,
) -> None:
    output = finished(templates.start("price-desk", "What do 12 lamps cost?", wait=30))

    assert output["text"] == "Twelve lamps cost 600.0 with tax."


def test_purchase_below_the_limit_asks_nobody(templates: Installation) -> None:
    given = {"item": "pens", "amount": 20}

    output = finished(templates.start("purchase", given, wait=30))

    assert output == {"order": "Ordered: pens", "asked": False}


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_purchase_above_the_limit_waits_for_a_decision(
    templates: Installation, decision: str
) -> None:
    run = templates.start("purchase", {"item": f"crane-{decision}", "amount": 90_000})
    path = f"/v1/runs/{run['run_id']}"

    def asked() -> dict[str, Any]:
        found = [
            one
            for one in templates.client.get("/v1/approvals").json()["items"]
            if one["run_id"] == run["run_id"]
        ]
        assert len(found) == 1
        approval: dict[str, Any] = found[0]
        return approval

    approval = await eventually(asked)
    assert f"crane-{decision}" in str(approval)
    answer = templates.client.post(
        f"/v1/approvals/{run['run_id']}/{approval['record_id']}/{decision}", json={}
    )
    assert answer.status_code == 202, answer.text

    def over() -> dict[str, Any]:
        view: dict[str, Any] = templates.client.get(path).json()
        assert view["status"] in ("done", "failed"), view
        return view

    view = await eventually(over)
    if decision == "approve":
        assert view["output"] == {"order": "Ordered: crane-approve", "asked": True}
    else:
        assert view["status"] == "failed"


def test_map_reads_every_review_in_order(templates: Installation) -> None:
    texts = [f"review {number}" for number in range(25)]
    given = {"reviews": [{"text": text} for text in texts]}

    output = finished(templates.start("review-digest", given, wait=30))

    assert output["count"] == 25
    assert output["notes"] == [
        {"number": number + 1, "note": f"It says: {text}"} for number, text in enumerate(texts)
    ]


def test_saga_books_everything_where_the_card_is_good(templates: Installation) -> None:
    output = finished(templates.start("book-trip", {"city": "Oslo", "card": "valid"}, wait=30))

    assert output == {
        "flight": "Confirmed: flight to Oslo",
        "hotel": "Confirmed: hotel in Oslo",
    }


def test_saga_undoes_in_reverse_what_was_booked(templates: Installation) -> None:
    run = templates.start("book-trip", {"city": "Oslo", "card": "declined"}, wait=30)

    assert run["status"] == "failed"
    assert "declined" in run["error"]["message"]
    steps = templates.get(run["run_id"])["steps"]
    done = [step["node_id"] for step in steps if step["status"] == "succeeded"]
    assert done == ["flight", "hotel", "hotel_undo", "flight_undo", "tell"]
