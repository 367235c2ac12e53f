"""A client that a foreign generator makes from the OpenAPI document, against a real stack."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.installation import Installation
from tests.support.waiting import eventually

PACKAGE = "penstock_generated"


@pytest.fixture(scope="module")
def generated(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Generate the package and make it importable; return what the generator printed."""
    folder = tmp_path_factory.mktemp("generated")
    document, settings = folder / "openapi.json", folder / "settings.yaml"
    document.write_bytes(installation.client.get("/openapi.json").content)
    settings.write_text(json.dumps({"post_hooks": []}))
    command = [
        *(str(Path(sys.executable).with_name("openapi-python-client")), "generate"),
        *("--path", str(document), "--config", str(settings), "--meta", "none"),
        *("--output-path", str(folder / PACKAGE)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield done.stdout + done.stderr


def operation(tag: str, name: str) -> Any:
    return import_module(f"{PACKAGE}.api.{tag}.{name}")


def model(name: str) -> Any:
    return getattr(import_module(f"{PACKAGE}.models"), name)


@pytest.fixture
def client(installation: Installation, generated: str) -> Iterator[Any]:
    assert generated
    package = import_module(f"{PACKAGE}.client")
    with package.Client(base_url=str(installation.client.base_url)) as opened:
        yield opened


def start(client: Any, body: dict[str, Any], **headers: str) -> Any:
    request = model("StartRun").from_dict(body)
    return operation("runs", "start_run").sync(client=client, body=request, **headers)


def test_generator_understands_all_but_lines_and_yaml(generated: str) -> None:
    warnings = {line for line in generated.splitlines() if line.startswith("WARNING")}
    assert warnings == {
        "WARNING parsing GET /v1/runs/{run_id}/export within runs.",
        "WARNING parsing POST /v1/runs/import within runs. Endpoint will not be generated.",
        "WARNING parsing POST /v1/apply within definitions.",
    }


def test_generated_client_starts_a_run_and_waits_for_it(client: Any) -> None:
    given = {"name": "growth-report", "input": {"principal": 1000, "rate": 2, "years": 5}}
    run = start(client, given, prefer="wait=30")
    assert (type(run).__name__, run.status.value) == ("RunView", "done")
    assert run.output["value"] == 32000
    again = operation("runs", "get_run").sync(run.run_id, client=client)
    assert again.output == run.output
    assert len(again.steps) > 0


async def test_generated_client_follows_a_run_to_its_end(client: Any) -> None:
    run = start(client, {"name": "research-assistant", "input": "For how many households?"})
    seen: list[Any] = []
    place = "0"

    def follow() -> bool:
        nonlocal place
        page = operation("runs", "get_events").sync(run.run_id, client=client, after=place, limit=1)
        assert len(page.items) <= 1
        seen.extend(page.items)
        place = page.next_cursor or str(page.last_id)
        return bool(seen) and seen[-1].type_.value == "run_done"

    await eventually(follow)
    kinds = [event.type_.value for event in seen]
    assert kinds[:2] == ["run_started", "user_input"]
    assert kinds.count("run_done") == kinds.count("user_input") == 1


def test_generated_client_reads_errors(client: Any) -> None:
    problem = start(client, {"name": "growth-reprot"})
    assert (type(problem).__name__, problem.code, problem.status) == (
        "Problem",
        "unknown_name",
        404,
    )
    assert problem.errors[0].path == "name"
    absent = operation("runs", "get_run").sync_detailed("nothing", client=client)
    assert (absent.status_code, absent.parsed.code) == (404, "run_not_found")
    assert absent.headers["content-type"] == "application/problem+json"


def test_generated_client_lists_definitions(client: Any) -> None:
    page = operation("agents", "list_agents").sync(client=client)
    assert "research-assistant" in {item.name for item in page.items}
