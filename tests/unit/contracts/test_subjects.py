"""Subjects: what is built is taken apart again, and filters match what they should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.contracts import subjects
from penstock.contracts.ids import TOKEN_PATTERN
from penstock.contracts.subjects import FactSubject

tokens = st.from_regex(TOKEN_PATTERN, fullmatch=True)
shards = st.integers(0, 1023)
counts = st.integers(1, 10_000)


def matches(subject_filter: str, subject: str) -> bool:
    """Match as the server does: `*` is one token, `>` at least one."""
    wanted, found = subject_filter.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(found) > index
        if index >= len(found) or token not in ("*", found[index]):
            return False
    return len(wanted) == len(found)


@given(tokens, shards, tokens, tokens, counts)
def test_inputs_are_parsed_as_they_were_built(
    tenant: str, shard: int, run_id: str, name: str, attempt: int
) -> None:
    prefix = subjects.run_prefix(tenant, shard, run_id)

    assert subjects.parse_fact(subjects.invoke(prefix)) == FactSubject(
        tenant, shard, run_id, "invoke"
    )
    assert subjects.parse_fact(subjects.cancel(prefix)) == FactSubject(
        tenant, shard, run_id, "cancel"
    )
    assert subjects.parse_fact(subjects.signal(prefix, name)) == FactSubject(
        tenant, shard, run_id, "signal", step_id=name
    )
    assert subjects.parse_fact(subjects.result(prefix, name, attempt)) == FactSubject(
        tenant, shard, run_id, "result", step_id=name, attempt=attempt
    )


@given(tokens, shards, tokens, counts, tokens, tokens, tokens, counts)
def test_decisions_are_parsed_as_they_were_built(
    tenant: str,
    shard: int,
    run_id: str,
    number: int,
    kind: str,
    queue: str,
    step_id: str,
    attempt: int,
) -> None:
    prefix = subjects.run_prefix(tenant, shard, run_id)
    suffix = subjects.step_suffix(kind, queue, step_id, attempt)

    assert subjects.parse_suffix(suffix) == (kind, queue, step_id, attempt)
    assert subjects.parse_fact(subjects.out(prefix, number, suffix)) == FactSubject(
        tenant, shard, run_id, "step", number, kind, queue, step_id, attempt
    )
    assert subjects.parse_fact(subjects.out(prefix, number, subjects.STATE_SUFFIX)) == FactSubject(
        tenant, shard, run_id, "state", number
    )
    assert subjects.parse_fact(subjects.out(prefix, number, subjects.END_SUFFIX)) == FactSubject(
        tenant, shard, run_id, "end", number
    )


@given(tokens, shards, tokens, tokens)
def test_timers_are_parsed_as_they_were_built(
    tenant: str, shard: int, run_id: str, timer_id: str
) -> None:
    due = subjects.timer_due(tenant, shard, run_id, timer_id)

    assert subjects.parse_timer(due) == (tenant, shard, run_id, timer_id)
    assert matches(subjects.timer_due_filter(shard), due)
    assert not matches(
        subjects.timer_due_filter(shard), subjects.timer_set(tenant, shard, run_id, timer_id)
    )


@given(tokens, shards, tokens, tokens, counts)
def test_deltas_are_parsed_as_they_were_built(
    tenant: str, shard: int, run_id: str, step_id: str, attempt: int
) -> None:
    delta = subjects.delta(tenant, shard, run_id, step_id, attempt)

    assert subjects.parse_delta(delta) == (step_id, attempt)
    assert matches(subjects.delta_filter(tenant, shard, run_id), delta)


@given(tokens, shards, tokens)
def test_stops_are_parsed_as_they_were_built(tenant: str, shard: int, run_id: str) -> None:
    stop = subjects.stop(tenant, shard, run_id)

    assert subjects.parse_stop(stop) == run_id
    assert matches(subjects.STOP_SPACE, stop)


PREFIX = subjects.run_prefix("acme", 3, "R")
INPUTS = [
    subjects.invoke(PREFIX),
    subjects.cancel(PREFIX),
    subjects.signal(PREFIX, "s"),
    subjects.result(PREFIX, "a-1", 2),
]
STEP = subjects.out(PREFIX, 4, subjects.step_suffix("tool", "http", "a-1-0", 1))
DECISIONS = [
    STEP,
    subjects.out(PREFIX, 4, subjects.STATE_SUFFIX),
    subjects.out(PREFIX, 4, subjects.END_SUFFIX),
]


@pytest.mark.parametrize("subject", INPUTS + DECISIONS)
def test_every_fact_is_of_its_run_and_lives_in_the_streams_space(subject: str) -> None:
    assert matches(subjects.RUN_SPACE, subject)
    assert matches(subjects.run_filter("acme", 3, "R"), subject)
    assert not matches(subjects.run_filter("acme", 3, "S"), subject)
    assert not matches(subjects.run_filter("other", 3, "R"), subject)
    assert matches(subjects.LIVE_SPACE, subjects.live(subject))


@pytest.mark.parametrize("subject", INPUTS + DECISIONS)
def test_engine_is_fed_with_inputs_alone(subject: str) -> None:
    assert matches(subjects.engine_filter(3), subject) == (subject in INPUTS)
    assert not matches(subjects.engine_filter(4), subject)


@pytest.mark.parametrize("subject", INPUTS + DECISIONS)
def test_runner_is_fed_with_the_steps_of_its_queue_alone(subject: str) -> None:
    assert matches(subjects.runner_filter("tool", "http"), subject) == (subject == STEP)
    assert not matches(subjects.runner_filter("agent", "http"), subject)
    assert not matches(subjects.runner_filter("tool", "builtin"), subject)


@pytest.mark.parametrize("subject", INPUTS + DECISIONS)
def test_fence_covers_all_messages_of_its_decision_and_no_other(subject: str) -> None:
    assert matches(subjects.fence(PREFIX, 4), subject) == (subject in DECISIONS)
    assert not matches(subjects.fence(PREFIX, 40), subject)
    assert not matches(subjects.fence(PREFIX, 3), subject)


def test_ends_are_found_by_their_filters() -> None:
    end = subjects.out(PREFIX, 12, subjects.END_SUFFIX)

    assert matches(subjects.ends_filter(PREFIX), end)
    assert matches(subjects.LIVE_ENDS, subjects.live(end))
    assert not matches(subjects.ends_filter(PREFIX), STEP)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "run",
        "run.acme.3.R",
        "run.acme.3.R.in",
        "run.acme.x.R.in.invoke",
        "run.acme.3.R.in.result.a",
        "run.acme.3.R.in.result.a.x",
        "run.acme.3.R.in.signal",
        "run.acme.3.R.in.other",
        "run.acme.3.R.out.1",
        "run.acme.3.R.out.x.end",
        "run.acme.3.R.out.1.step.tool.q.a",
        "run.acme.3.R.out.1.step.tool.q.a.x",
        "run.acme.3.R.out.1.other",
        "run.acme.3.R.over.1.end",
        "live.run.acme.3.R.in.invoke",
        "timer.due.acme.3.R.t",
    ],
)
def test_parse_fact_of_another_subject_is_refused(subject: str) -> None:
    with pytest.raises(ValueError, match="not the subject of a fact"):
        subjects.parse_fact(subject)


@pytest.mark.parametrize(
    ("parse", "subject"),
    [
        (subjects.parse_timer, "timer.set.acme.3.R.t"),
        (subjects.parse_timer, "timer.due.acme.x.R.t"),
        (subjects.parse_timer, "timer.due.acme.3.R"),
        (subjects.parse_timer, "timer.due.acme.3.R.t.more"),
        (subjects.parse_delta, "delta.acme.3.R.a"),
        (subjects.parse_delta, "delta.acme.3.R.a.x"),
        (subjects.parse_delta, "run.acme.3.R.a.1"),
        (subjects.parse_suffix, "end"),
        (subjects.parse_suffix, "step.tool.q.a"),
        (subjects.parse_suffix, "state.tool.q.a.1"),
        (subjects.parse_suffix, "step.tool.q.a.x"),
    ],
)
def test_parsers_refuse_what_is_not_theirs(parse: Callable[[str], object], subject: str) -> None:
    with pytest.raises(ValueError, match=r"not|invalid"):
        parse(subject)


def test_consumers_and_keys_are_single_names() -> None:
    names = [
        subjects.engine_consumer(3),
        subjects.timer_consumer(3),
        subjects.runner_consumer("tool", "http"),
        subjects.PROJECTOR,
    ]

    assert len(set(names)) == len(names)
    assert all("." not in name and "*" not in name for name in names)
    assert subjects.published_key("acme", "research") == "acme.research"
    assert subjects.session_key("acme", "s") == "acme.s"
    assert subjects.webhook_key("acme", "w") == "acme.w"
    assert subjects.runner_key("tool", "http", "r1") == "tool.http.r1"
    assert subjects.shard_lease_key(3) == "shard.3"
    assert subjects.member_lease_key("i") == "member.i"
    assert subjects.rpc("registry", "apply") == "rpc.registry.apply"
    assert subjects.dead("RUNS", "engine_3") == "dead.RUNS.engine_3"
    assert subjects.canary("i") == "canary.i"
