"""Documents that tests apply."""

from __future__ import annotations

from typing import Any

NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
}


def document(kind: str, name: str, spec: dict[str, Any], description: str = "") -> dict[str, Any]:
    return {
        "apiVersion": "penstock/v1",
        "kind": kind,
        "metadata": {"name": name, "description": description},
        "spec": spec,
    }


def tool(name: str = "add", **spec: Any) -> dict[str, Any]:
    return document("Tool", name, {"builtin": {}, "parameters": NUMBERS, **spec})


def agent(name: str = "helper", **spec: Any) -> dict[str, Any]:
    return document("Agent", name, {"model": "openai/gpt-5-mini", "tools": ["add"], **spec})


def workflow(name: str = "flow", **spec: Any) -> dict[str, Any]:
    steps = [
        {"id": "first", "tool": "add", "input": {"a": 1, "b": 2}},
        {"id": "second", "agent": "helper", "input": "{{ steps.first.output }}"},
    ]
    return document("Workflow", name, {"steps": steps, **spec})


def webhook(name: str = "push", **spec: Any) -> dict[str, Any]:
    return document("Webhook", name, {"target": "flow", **spec})
