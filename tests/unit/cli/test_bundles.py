"""`penstock runs verify`: hashes always, the signature where there is a key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli.bundles import app
from penstock.cli.failure import CommandError
from penstock.contracts.messages import LogEntry
from penstock.runs.bundles import BundleHeader, write
from tests.support.simulation import RUN_ID, START, TENANT, Driver, make_plan, tool_node

KEY = "a key of at least 16 bytes"


@pytest.mark.parametrize(
    ("signing", "checking", "signature"),
    [
        (None, None, "none"),
        (KEY, None, "not checked"),
        (KEY, KEY, "valid"),
        (None, KEY, None),
        ("another key of 16 bytes", KEY, None),
    ],
)
def test_signature_is_checked_where_there_is_a_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signing: str | None,
    checking: str | None,
    signature: str | None,
) -> None:
    source = Driver(make_plan(tool_node("a"))).start()
    header = BundleHeader(run_id=RUN_ID, tenant=TENANT, created_at=START)
    entries = [
        LogEntry(seq=message.seq, subject=message.subject, fact=message.entry.fact)
        for message in source.log.messages
    ]
    file = tmp_path / "run.ndjson"
    key = None if signing is None else signing.encode()
    file.write_bytes(b"".join(write(header, source.plan.to_bytes(), entries, key)))
    if checking is not None:
        monkeypatch.setenv("PENSTOCK_BUNDLE_KEY", checking)

    done = CliRunner().invoke(app, ["verify", str(file), "--json"])

    if signature is None:
        assert isinstance(done.exception, CommandError)
        assert "PENSTOCK_BUNDLE_KEY" in done.exception.message
    else:
        assert json.loads(done.stdout)["signature"] == signature
