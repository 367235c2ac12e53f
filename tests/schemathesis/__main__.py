"""Start a stack that needs keys, and run Schemathesis against its gateway."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from penstock.stack import Stack, StackOptions
from tests.support.installation import ENV, EXAMPLES

HERE = Path(__file__).parent.absolute()
SCHEMATHESIS = Path(".schemathesis/bin/schemathesis").absolute()


def main() -> int:
    """Return the status of Schemathesis; further arguments are passed on to it."""
    with tempfile.TemporaryDirectory() as folder:
        options = StackOptions(data_dir=folder, port=0, nats_port=0, auth=True)
        with Stack(options, env=ENV) as stack:
            key = create_key(folder)
            apply(stack.url, key)
            command = [
                *(str(SCHEMATHESIS), "--config-file", str(HERE / "settings.toml")),
                *("run", f"{stack.url}/openapi.json"),
                *("--header", f"Authorization: Bearer {key}", "--checks", "all"),
                *("--continue-on-failure", "--request-timeout", "10", "--seed", "1"),
                *("--max-examples", "5", "--warnings", "off", *sys.argv[1:]),
            ]
            environment = {
                **os.environ,
                "SCHEMATHESIS_HOOKS": "hooks",
                "PYTHONPATH": str(HERE),
            }
            # In its own folder, where it leaves what it remembers of a run.
            return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def create_key(folder: str) -> str:
    """Return the secret of a new key with all roles."""
    command = [
        *(sys.executable, "-m", "penstock.cli.app", "--data-dir", folder, "keys", "create"),
        *("--role", "admin", "--role", "operator", "--role", "viewer", "--role", "runner"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def apply(url: str, key: str) -> None:
    """Publish the examples, so that names in requests can be right ones."""
    documents = [file.read_text() for file in sorted(EXAMPLES.glob("*.yaml"))]
    httpx.post(
        f"{url}/v1/apply",
        json={"documents": documents, "publish": True},
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
    ).raise_for_status()


if __name__ == "__main__":
    raise SystemExit(main())
