from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from penstock.cli.app import app
from penstock.target import Target

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
