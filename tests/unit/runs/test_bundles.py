"""Bundles: written, read, and refused where anything of them was changed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from penstock.contracts.errors import RejectedError
from penstock.contracts.messages import LogEntry
from penstock.runs.bundles import BundleHeader, moved, read, write
from tests.support.simulation import RUN_ID, START, TENANT, Driver, make_plan, tool_node


def driver() -> Driver:
    return Driver(make_plan(tool_node("a"), tool_node("b", "a"))).start().result("a", "ü€😀")


def lines_of(source: Driver) -> list[bytes]:
    header = BundleHeader(run_id=RUN_ID, tenant=TENANT, created_at=START)
    entries = [
        LogEntry(seq=message.seq, subject=message.subject, fact=message.entry.fact)
        for message in source.log.messages
    ]
    return list(write(header, source.plan.to_bytes(), entries))


def test_bundle_that_was_written_is_read() -> None:
    source = driver()

    bundle = read(lines_of(source))

    assert bundle.plan == source.plan.to_bytes()
    assert [entry.fact for entry in bundle.entries] == [e.fact for e in source.log.entries]
    assert bundle.invoked == source.invoked
    assert bundle.ended is None


def test_bundle_is_the_same_whatever_wrote_its_json() -> None:
    lines = lines_of(driver())
    rewritten = [json.dumps(json.loads(line), indent=None).encode() for line in lines]

    assert read(rewritten).hash == read(lines).hash


def _changed(lines: list[bytes]) -> list[bytes]:
    return [line.replace("ü".encode(), b"u") for line in lines]


def _cut_off(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def _left_out(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], *lines[4:]]


def _reordered(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


def _followed(lines: list[bytes]) -> list[bytes]:
    return [*lines, lines[-1]]


def _no_json(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"{", *lines[1:]]


def _nothing(lines: list[bytes]) -> list[bytes]:
    return lines[:0]


@pytest.mark.parametrize(
    "spoil", [_changed, _cut_off, _left_out, _reordered, _followed, _no_json, _nothing]
)
def test_spoilt_bundle_is_refused(spoil: Callable[[list[bytes]], list[bytes]]) -> None:
    with pytest.raises(RejectedError) as refused:
        read(spoil(lines_of(driver())))

    assert refused.value.code == "invalid_bundle"
    assert refused.value.details[0].path.startswith("line ")


def test_bundle_with_the_plan_of_another_run_is_refused() -> None:
    source = driver()
    header = BundleHeader(run_id=RUN_ID, tenant=TENANT, created_at=START)
    entries = [
        LogEntry(seq=m.seq, subject=m.subject, fact=m.entry.fact) for m in source.log.messages
    ]
    other = make_plan(tool_node("z"))

    with pytest.raises(RejectedError, match="not the run's"):
        read(write(header, other.to_bytes(), entries))


def test_subject_is_moved_to_another_run() -> None:
    assert moved("run.a.1.R.in.result.s.1", "run.b.2.Q") == "run.b.2.Q.in.result.s.1"


def test_signature_is_that_of_one_key_and_of_the_whole_content() -> None:
    source = driver()
    header = BundleHeader(run_id=RUN_ID, tenant=TENANT, created_at=START)
    entries = [
        LogEntry(seq=m.seq, subject=m.subject, fact=m.entry.fact) for m in source.log.messages
    ]
    key = b"a key of at least 16 bytes"

    signed = read(write(header, source.plan.to_bytes(), entries, key))
    unsigned = read(write(header, source.plan.to_bytes(), entries))
    other = read(write(header, source.plan.to_bytes(), entries[:-1], key))

    assert signed.signed_by(key)
    assert not signed.signed_by(b"another key of 16 bytes")
    assert not unsigned.signed_by(key)
    assert signed.hash == unsigned.hash != other.hash
    assert signed.signature != other.signature
