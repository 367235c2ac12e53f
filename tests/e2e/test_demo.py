import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.installation import EXAMPLES
from tests.support.openai_server import OpenAIServer, Reply, chunk, usage_chunk

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL")


def run_demo(tmp_path: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in KEYS and not name.startswith("PENSTOCK_")
    }
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**environment, "TMPDIR": str(tmp_path), **variables},
    )


def call(index: int, name: str, a: int, b: int) -> dict[str, Any]:
    arguments = json.dumps({"a": a, "b": b})
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": f"call_{name}_{a}", "type": "function", "function": function}


def test_demo_without_a_key_passes_all_its_checks_and_leaves_nothing(tmp_path: Path) -> None:
    shown = run_demo(tmp_path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "[/]" not in shown.stdout
    assert "28 checks, all right." in shown.stdout
    assert not list(tmp_path.iterdir())


def test_demo_with_a_key_asks_the_real_model(tmp_path: Path) -> None:
    with OpenAIServer() as model:
        calls = [call(0, "multiply", 1_050_000, 200), call(1, "multiply", 4, 1050)]
        model.replies += [
            Reply(chunks=[chunk(calls=calls), chunk(finish="tool_calls"), usage_chunk(50, 20)]),
            Reply(
                chunks=[
                    chunk(calls=[call(0, "divide", 210_000_000, 4200)]),
                    chunk(finish="tool_calls"),
                    usage_chunk(90, 10),
                ]
            ),
            Reply(
                chunks=[chunk("For 50,000 "), chunk("of them.", finish="stop"), usage_chunk(110, 9)]
            ),
        ]
        shown = run_demo(
            tmp_path,
            OPENAI_API_KEY="sk-test",
            OPENAI_API_BASE=model.url,
            PENSTOCK_HTTP_ALLOW="127.0.0.1",
        )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "[/]" not in shown.stdout
    assert "asking openai/gpt-5-mini" in shown.stdout
    asked = model.requests
    assert [request.body["model"] for request in asked] == ["gpt-5-mini"] * 3
    assert [message["role"] for message in asked[1].body["messages"]] == [
        "system", "user", "assistant", "tool", "tool",
    ]  # fmt: skip
    assert asked[2].body["messages"][-1]["content"] == "50000"
