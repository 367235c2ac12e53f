from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from penstock.cli.app import app
from penstock.target import Target

AT = "2026-11-20T12:00:00Z"
RUN_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
RUN: dict[str, Any] = {
    "run_id": RUN_ID,
    "tenant": "default",
    "name": "helper",
    "kind": "agent",
    "version": 1,
    "plan_digest": "d" * 64,
    "status": "running",
    "trigger": "http",
    "created_at": AT,
    "updated_at": AT,
    "last_seq": 7,
}
"""A run as the gateway shows it."""

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(
        url="http://gateway.test",
        nats_url="nats://127.0.0.1:1",
        data_dir=tmp_path,
        api_key="pk_test",
        tenant="default",
        stack=None,
    )


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """Every request that was sent, in order."""
    return []


@pytest.fixture
def gateway(
    monkeypatch: pytest.MonkeyPatch, requests: list[httpx.Request]
) -> Callable[[Handler], None]:
    """Put a function in the place of the network."""

    def install(handler: Handler) -> None:
        def handle(_self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
            request.read()
            requests.append(request)
            response = handler(request)
            response.request = request
            return response

        monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle)

    return install


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in an empty folder, away from any stack."""
    monkeypatch.chdir(tmp_path)
    for name in ("PENSTOCK_URL", "PENSTOCK_API_KEY", "PENSTOCK_DATA_DIR", "PENSTOCK_NATS_URL"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(app, list(arguments), **options)

    return invoke
