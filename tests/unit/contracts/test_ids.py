"""Identifiers: their form, and that each is derived."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from penstock.contracts import ids
from penstock.contracts.errors import RejectedError
from penstock.contracts.ids import (
    NODE_ID_PATTERN,
    TOKEN_PATTERN,
    NodeId,
    call_step_id,
    content_digest,
    idempotency_key,
    is_run_id,
    require_token,
    run_id_from,
    run_id_from_key,
    shard_of,
    turn_step_id,
)
from penstock_gateway.runs.start import new_run_id

node_ids = st.from_regex(NODE_ID_PATTERN, fullmatch=True)
BAD_TOKENS = ["", "a.b", "a b", "a*", ">", "ä", "a" * 65, "a\n", "$JS", "a/b"]


@pytest.mark.parametrize("value", ["a", "A-z_0", "a" * 64])
def test_require_token_of_one_returns_it(value: str) -> None:
    assert require_token(value, path="x") == value


@pytest.mark.parametrize("value", BAD_TOKENS)
def test_require_token_of_another_text_is_rejected_with_its_place(value: str) -> None:
    with pytest.raises(RejectedError) as rejected:
        require_token(value, path="spec.name")

    assert rejected.value.code == "invalid_token"
    assert rejected.value.details[0].path == "spec.name"


@pytest.mark.parametrize("value", [*BAD_TOKENS, "1a", "a-b", "_a", "a" * 41])
def test_node_id_of_another_form_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(NodeId).validate_python(value)


@given(node_ids, st.integers(1, 1000), st.integers(0, 999))
def test_step_ids_are_tokens_and_tell_node_turn_and_call(
    node_id: str, turn: int, index: int
) -> None:
    step_id = call_step_id(node_id, turn, index)

    assert re.fullmatch(TOKEN_PATTERN, f"{step_id}-100")
    assert step_id.split("-") == [node_id, str(turn), str(index)]
    assert turn_step_id(node_id, turn).split("-") == [node_id, str(turn)]


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_run_id_from_time_and_entropy_has_the_form_of_one(time_ms: int, entropy: bytes) -> None:
    run_id = run_id_from(time_ms, entropy)

    assert is_run_id(run_id)
    assert run_id == run_id_from(time_ms, entropy)


@given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=10))
def test_run_id_of_a_later_time_sorts_later(time_ms: int, entropy: bytes) -> None:
    assert run_id_from(time_ms, b"\xff" * 10) < run_id_from(time_ms + 1, entropy)


def test_run_id_of_time_zero_is_the_smallest() -> None:
    assert run_id_from(0, bytes(10)) == "0" * 26


def test_new_run_ids_differ() -> None:
    ids = {new_run_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(map(is_run_id, ids))


@given(st.text(), st.text())
def test_run_id_from_key_is_the_same_for_the_same_key(tenant: str, key: str) -> None:
    run_id = run_id_from_key(tenant, key)

    assert is_run_id(run_id)
    assert run_id == run_id_from_key(tenant, key)


def test_run_id_from_key_differs_by_tenant_and_key() -> None:
    pairs = [("a", "b"), ("b", "a"), ("ab", ""), ("", "ab"), ("a", "bc"), ("ab", "c")]

    assert len({run_id_from_key(*pair) for pair in pairs}) == len(pairs)


def test_run_id_from_key_never_changes() -> None:
    assert run_id_from_key("acme", "key-1") == "51W3PXP8TFR0BRMCMXASQ0N501"


@pytest.mark.parametrize("value", ["", "0" * 25, "0" * 27, "I" * 26, "l" * 26, "0" * 25 + "."])
def test_is_run_id_of_another_text_is_false(value: str) -> None:
    assert not is_run_id(value)


@pytest.mark.parametrize(("shards", "shard"), [(1, 0), (8, 2), (16, 10)])
def test_shard_of_a_run_never_changes(shards: int, shard: int) -> None:
    assert shard_of("01JCXYZ8M3T5V7W9ABCDEFGHJK", shards) == shard


def test_shard_of_many_runs_is_spread() -> None:
    spread = Counter(shard_of(new_run_id(), 8) for _ in range(4000))

    assert set(spread) == set(range(8))
    assert min(spread.values()) > 350


def test_idempotency_key_names_run_and_step() -> None:
    assert idempotency_key("R", "a-1-0") == "R:a-1-0"


def test_content_digest_is_the_sha_256() -> None:
    assert content_digest(b"") == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


@pytest.mark.parametrize(
    ("record_id", "step_id", "purpose"),
    [
        ("a", "a", "node"),
        ("a-x1x2", "a-x1x2", "node"),
        (ids.approval_record_id("a-1-0"), "a-1-0", "approval"),
        (ids.resolution_record_id("a-x3"), "a-x3", "resolution"),
        (ids.MAIN_RECORD, "-main", "phase"),
        (ids.ON_ERROR_DONE_RECORD, "-on_error_done", "phase"),
    ],
)
def test_record_id_parses_into_step_and_purpose(record_id: str, step_id: str, purpose: str) -> None:
    assert ids.RecordId.parse(record_id) == (step_id, purpose)
