"""A whole stack as processes, shared by the tests of this folder, and ways to talk to it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock.stack import Stack, StackOptions
from tests.support.installation import ENV, EXAMPLES, Installation, scripted_agent


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One stack for all tests that keep to names of their own; the examples are applied."""
    data_dir = tmp_path_factory.mktemp("stack")
    stack = Stack(StackOptions(data_dir=str(data_dir), port=0, nats_port=0), env=ENV)
    with stack:
        found = Installation(stack, data_dir)
        found.apply(*(file.read_text() for file in sorted(EXAMPLES.glob("*.yaml"))))
        yield found
        found.client.close()


@pytest.fixture
def create_installation(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Installation]]:
    """Start stacks of the test's own; `data_dir` continues an earlier one."""
    with ExitStack() as opened:

        def create(data_dir: Path | None = None, **options: Any) -> Installation:
            folder = data_dir or tmp_path_factory.mktemp("stack")
            stack = Stack(
                StackOptions(data_dir=str(folder), port=0, nats_port=0, **options), env=ENV
            )
            opened.callback(stack.stop)
            stack.start()
            found = Installation(stack, folder)
            opened.callback(found.client.close)
            return found

        yield create


@pytest.fixture
def create_agent(installation: Installation) -> Callable[..., str]:
    """Publish a scripted agent under a name of its own; takes its turns."""

    def create(*turns: dict[str, Any], **spec: Any) -> str:
        name = f"agent-{uuid.uuid4().hex[:12]}"
        installation.apply(scripted_agent(name, *turns, **spec))
        return name

    return create
