"""A running stack with what end-to-end tests ask of it."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx

from penstock.client import Client
from penstock.runs.events import ClientEvent
from penstock.stack import Stack
from penstock.target import Target, find_target
from tests.support.waiting import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"
WEBHOOK_KEY = secrets.token_bytes(24)
ENV = {
    "PENSTOCK_SECRET_EXAMPLE_WEBHOOK": "whsec_" + base64.b64encode(WEBHOOK_KEY).decode(),
    "PENSTOCK_SECRET_QUOTES_KEY": "quotes-" + secrets.token_hex(8),
    "PENSTOCK_HTTP_ALLOW": "127.0.0.1",
    # Whatever the tests' own environment says of the bus or of databases is not for these.
    "PENSTOCK_URL": "",
    "DATABASE_URL": "",
}


class Installation:
    """A running stack with an HTTP client for it."""

    def __init__(self, stack: Stack, data_dir: Path) -> None:
        self.stack = stack
        self.data_dir = data_dir
        self.url = stack.url
        self.client = httpx.Client(base_url=self.url, timeout=60)

    @property
    def target(self) -> Target:
        return find_target(data_dir=str(self.data_dir))

    def close(self) -> None:
        self.client.close()
        self.stack.stop()

    def apply(self, *documents: dict[str, Any] | str) -> list[dict[str, Any]]:
        """Store and publish documents; return what was done to each."""
        body = {"documents": list(documents), "publish": True}
        answer = self.client.post("/v1/apply", json=body)
        assert answer.status_code == 200, answer.text
        results: list[dict[str, Any]] = answer.json()["results"]
        return results

    def start(self, name: str, value: Any = None, **options: Any) -> dict[str, Any]:
        """Start a run; return it as the gateway answered."""
        headers = {}
        if (wait := options.pop("wait", None)) is not None:
            headers["Prefer"] = f"wait={wait}"
        if (key := options.pop("key", None)) is not None:
            headers["Idempotency-Key"] = key
        body = {"name": name, "input": value, **options}
        answer = self.client.post("/v1/runs", json=body, headers=headers)
        assert answer.is_success, answer.text
        run: dict[str, Any] = answer.json()
        return run

    def get(self, run_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        run: dict[str, Any] = answer.json()
        return run

    def log(self, run_id: str) -> list[dict[str, Any]]:
        """Return the events of a run's log as a page of JSON."""
        answer = self.client.get(f"/v1/runs/{run_id}/events", params={"limit": 1000})
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def penstock(self, *arguments: str, given: str | None = None, code: int = 0) -> str:
        """Run a command against the stack, with `given` typed in; return what it prints.

        Where another exit code is expected, what is said on standard error is returned.
        """
        command = [sys.executable, "-m", "penstock.cli.app", "--data-dir", str(self.data_dir)]
        done = subprocess.run(
            [*command, *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def said(self, *arguments: str) -> Any:
        """Run a command with ``--json``; return what it says."""
        return json.loads(self.penstock(*arguments, "--json"))

    async def until(self, run_id: str, *statuses: str, within: float = 30) -> dict[str, Any]:
        """Wait until a run has one of the statuses, else one of an end; return it."""
        wanted = statuses or ("done", "failed", "cancelled")

        def probe() -> dict[str, Any]:
            run = self.get(run_id)
            assert run["status"] in wanted, run
            return run

        return await eventually(probe, within=within)

    def stream(
        self, run_id: str, *, url: str | None = None, after: int = 0
    ) -> Generator[ClientEvent]:
        """Yield a run's events while they happen, from this gateway or another."""
        with Client(url or self.url) as client:
            yield from client.follow(run_id, after=after)


def scripted_agent(name: str, *turns: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Return the document of an agent that plays turns."""
    return {
        "apiVersion": "penstock/v1",
        "kind": "Agent",
        "metadata": {"name": name},
        "spec": {"model": "scripted/test", "script": {"turns": list(turns)}, **spec},
    }
