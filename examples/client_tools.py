"""Run a definition whose tools this client executes itself, over plain HTTP."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx

FINAL = ("done", "failed", "cancelled")


def run_with_tools(
    api: httpx.Client, name: str, value: Any, tools: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    """Start a run, execute its client tools as it asks for them, and return it at its end."""
    wait = {"Prefer": "wait=60"}
    run = api.post("/v1/runs", json={"name": name, "input": value}, headers=wait).json()
    while run["status"] not in FINAL:
        path = f"/v1/runs/{run['run_id']}"
        results = [
            {
                "step_id": asked["record_id"],
                "output": tools[asked["request"]["name"]](**asked["request"]["arguments"]),
            }
            for asked in run["waiting_for"]
            if asked["kind"] == "client_tool"
        ]
        if results:
            run = api.post(f"{path}/tool_results", json={"results": results}, headers=wait).json()
        else:
            run = api.get(path, headers=wait).json()
    return dict(run)
