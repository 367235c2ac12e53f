"""The transcript as a function of what arrives: any order, any loss, the same stream."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from penstock.contracts import subjects
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    StepKind,
    StepResult,
    StepScheduled,
)
from penstock.contracts.messages import DeltaBatch
from penstock.runs.events import CLIENT_EVENT, ClientEvent, EventType, delta_events, events_of
from penstock.runs.state import Entry
from penstock_gateway.core.transcript import (
    Delta,
    LogNeeded,
    PiecesNeeded,
    Transcript,
    frame,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN = "0" * 26
PREFIX = subjects.run_prefix("t", 0, RUN)
A1 = ("a-1", 1)


def entry(seq: int, subject: str, fact: RunFact) -> Entry:
    return Entry(seq, subjects.parse_fact(subject), fact)


def invoked(seq: int) -> Entry:
    fact = RunInvoked(
        occurred_at=NOW,
        name="echo",
        kind=DefinitionKind.AGENT,
        version=1,
        plan_digest="d",
        input="hi",
    )
    return entry(seq, subjects.invoke(PREFIX), fact)


def scheduled(
    seq: int, step: str = "a-1", decision: int = 1, kind: str = "agent", cause: int = 1
) -> Entry:
    fact = StepScheduled(
        occurred_at=NOW,
        decision=Decision(cause_seq=cause),
        node_id=step,
        name="echo",
        expires_at=NOW,
    )
    suffix = subjects.step_suffix(kind, "default", step, 1)
    return entry(seq, subjects.out(PREFIX, decision, suffix), fact)


def result(seq: int, deltas: int, step: str = "a-1") -> Entry:
    fact = StepResult(
        occurred_at=NOW,
        started_at=NOW,
        kind=StepKind.AGENT,
        name="echo",
        status="succeeded",
        deltas=deltas,
    )
    return entry(seq, subjects.result(PREFIX, step, 1), fact)


def ended(seq: int, decision: int = 2) -> Entry:
    fact = RunEnded(occurred_at=NOW, decision=Decision(cause_seq=1), status=RunStatus.DONE)
    return entry(seq, subjects.out(PREFIX, decision, subjects.END_SUFFIX), fact)


def batch(first: int, *texts: str) -> DeltaBatch:
    return DeltaBatch(first=first, texts=texts)


def pieces(first: int, *texts: str) -> Delta:
    return Delta(A1, batch(first, *texts))


def drain(transcript: Transcript) -> bytes:
    data = b""
    while chunk := transcript.take():
        data += chunk
    return data


def expected(log: list[Entry], texts: dict[tuple[str, int], list[str]], after: int = 0) -> bytes:
    """The stream by the book: facts in order, an attempt's pieces right after its start."""
    data = b""
    for one in log:
        attempt = (one.subject.step_id, one.subject.attempt)
        if one.seq > after:
            data += b"".join(frame(event) for event in events_of(one))
        if isinstance(one.fact, StepScheduled) and attempt in texts:
            data += b"".join(
                frame(event) for event in delta_events(RUN, *attempt, batch(0, *texts[attempt]))
            )
    return data


LOG = [invoked(3), scheduled(5), result(9, 4), ended(12)]
TEXTS = {A1: ["one ", 'two "quoted"\n', "drei ü ", "\u2028"]}


def test_history_is_the_stream_by_the_book() -> None:
    transcript = Transcript(RUN)
    transcript.history(LOG, [pieces(0, *TEXTS[A1])])
    assert drain(transcript) == expected(LOG, TEXTS)
    assert transcript.finished


def test_pieces_written_by_hand_are_events_like_any_other() -> None:
    transcript = Transcript(RUN)
    transcript.history([invoked(3), scheduled(5)])
    drain(transcript)
    transcript.delta(A1, batch(0, 'a"\\\n', "b"))
    frames = drain(transcript).decode().strip().split("\n\n")
    for one, event in zip(
        frames, delta_events(RUN, "a-1", 1, batch(0, 'a"\\\n', "b")), strict=True
    ):
        data = one.partition("\ndata: ")[2]
        assert CLIENT_EVENT.validate_json(data) == event
        assert "id:" not in one.partition("data:")[0]


def test_live_facts_pass_as_they_come() -> None:
    transcript = Transcript(RUN)
    transcript.history([LOG[0]])
    for one in LOG[1:2]:
        transcript.fact(one)
    transcript.delta(A1, batch(0, *TEXTS[A1]))
    transcript.fact(LOG[2])
    transcript.fact(LOG[3])
    data = drain(transcript)
    assert transcript.need == LogNeeded(12)
    transcript.confirm(LOG)
    assert data + drain(transcript) == expected(LOG, TEXTS)


def test_history_and_live_copies_do_not_repeat() -> None:
    transcript = Transcript(RUN)
    for one in LOG:
        transcript.fact(one)
    transcript.delta(A1, batch(0, *TEXTS[A1]))
    transcript.history(LOG, [pieces(0, *TEXTS[A1])])
    assert drain(transcript) == expected(LOG, TEXTS)


def test_gap_between_pieces_is_asked_for_and_nothing_passes_it() -> None:
    transcript = Transcript(RUN)
    transcript.history([LOG[0], LOG[1]])
    drain(transcript)
    transcript.delta(A1, batch(2, *TEXTS[A1][2:]))
    transcript.fact(LOG[2])
    assert drain(transcript) == b""
    assert transcript.need == PiecesNeeded(A1, 0, 2)
    transcript.refill([pieces(2, "drei ü "), pieces(0, *TEXTS[A1][:2])])
    texts = [json.loads(line[6:])["data"].get("text") for line in lines(drain(transcript))]
    assert texts == [*TEXTS[A1], None]


def lines(data: bytes) -> list[str]:
    return [line for line in data.decode().split("\n") if line.startswith("data: ")]


def test_pieces_that_are_gone_for_good_do_not_hold_the_stream() -> None:
    transcript = Transcript(RUN)
    transcript.history([LOG[0], LOG[1]])
    drain(transcript)
    transcript.fact(LOG[2])
    assert drain(transcript) == b""
    assert transcript.need == PiecesNeeded(A1, 0, 4)
    transcript.refill([pieces(1, "two")])
    data = drain(transcript)
    assert [json.loads(line[6:])["type"] for line in lines(data)] == [
        "agent_stream_delta",
        "agent_invoke_done",
    ]


def test_result_in_the_history_asks_for_no_pieces() -> None:
    transcript = Transcript(RUN)
    transcript.history(LOG)
    drain(transcript)
    assert transcript.finished
    assert transcript.need is None


def test_facts_lost_on_the_way_come_before_the_end() -> None:
    transcript = Transcript(RUN)
    transcript.history([LOG[0]])
    transcript.fact(LOG[3])
    data = drain(transcript)
    transcript.confirm([*LOG, result(14, 0, "late-1")])
    data += drain(transcript)
    transcript.refill([pieces(0, *TEXTS[A1])])
    assert data + drain(transcript) == expected(LOG, TEXTS)


@pytest.mark.parametrize("after", [0, 3, 5, 9, 12, 100])
def test_resumed_stream_goes_on_after_its_cursor(after: int) -> None:
    transcript = Transcript(RUN, after=after)
    transcript.history(LOG, [pieces(0, *TEXTS[A1])])
    texts = TEXTS if after < 9 else {}
    assert drain(transcript) == expected(LOG, texts, after)
    assert transcript.finished


def test_resumed_stream_of_an_open_step_sends_its_pieces_from_the_beginning() -> None:
    transcript = Transcript(RUN, after=5)
    transcript.history(LOG[:2], [pieces(0, "one ")])
    transcript.delta(A1, batch(1, "two"))
    assert [json.loads(line[6:])["data"]["index"] for line in lines(drain(transcript))] == [0, 1]


def test_pieces_before_their_start_wait_for_it() -> None:
    transcript = Transcript(RUN)
    transcript.history([LOG[0]])
    drain(transcript)
    transcript.delta(A1, batch(0, "one "))
    assert drain(transcript) == b""
    transcript.fact(LOG[1])
    types = [json.loads(line[6:])["type"] for line in lines(drain(transcript))]
    assert types == ["agent_invoke_started", "agent_stream_delta"]


def test_pieces_after_their_result_are_dropped() -> None:
    transcript = Transcript(RUN)
    transcript.history(LOG[:3])
    drain(transcript)
    transcript.delta(A1, batch(0, "late"))
    assert drain(transcript) == b""


def test_types_choose_events_and_keep_deltas_out() -> None:
    transcript = Transcript(RUN, types=frozenset({EventType.RUN_DONE}))
    assert not transcript.wants_deltas
    transcript.history(LOG[:1])
    for one in LOG[1:]:
        transcript.fact(one)
    drain(transcript)
    transcript.confirm(LOG)
    assert [json.loads(line[6:])["type"] for line in lines(drain(transcript))] == ["run_done"]


def test_take_gives_bounded_chunks() -> None:
    transcript = Transcript(RUN)
    transcript.history([LOG[0], LOG[1]])
    drain(transcript)
    for index in range(1000):
        transcript.delta(A1, batch(index, "x" * 100))
    chunk = transcript.take(10_000)
    assert 10_000 <= len(chunk) < 11_000


@pytest.mark.parametrize("seed", range(60))
def test_any_loss_delay_and_reread_gives_the_stream_by_the_book(seed: int) -> None:
    """Live copies are lost and come late at random; the log and the deltas are read at random."""
    chance = random.Random(seed)
    steps = [f"a-{number}" for number in range(1, 4)]
    log: list[Entry] = [invoked(1)]
    deltas: dict[tuple[str, int], list[str]] = {}
    happenings: list[Any] = [log[0]]
    for number, step in enumerate(steps):
        start = scheduled(10 * number + 10, step, number + 1)
        texts = [f"{step}/{index} " for index in range(chance.randrange(0, 6))]
        if texts:
            deltas[step, 1] = texts
        done = result(10 * number + 15, len(texts), step)
        log += [start, done]
        batches = [Delta((step, 1), batch(index, text)) for index, text in enumerate(texts)]
        happenings += [start, *batches, done]
    log.append(ended(90, 9))
    happenings.append(log[-1])
    transcript = Transcript(RUN)
    data = b""
    stored: list[Entry] = []
    stored_deltas: list[Delta] = []

    def supply() -> None:
        need = transcript.need
        if isinstance(need, PiecesNeeded):
            transcript.refill(one for one in stored_deltas if one.attempt == need.attempt)
        elif isinstance(need, LogNeeded):
            transcript.confirm(list(stored))

    read_at = chance.randrange(len(happenings))
    for index, one in enumerate(happenings):
        (stored_deltas if isinstance(one, Delta) else stored).append(one)
        if index == read_at or chance.random() < 0.1:
            transcript.history(list(stored), list(stored_deltas))
        last = one is happenings[-1]
        # Losses are noticed by a reconnection, after which the log is read again.
        if index > read_at and chance.random() < 0.15 and not last:
            transcript.history(list(stored), list(stored_deltas))
            continue
        if isinstance(one, Delta):
            transcript.delta(one.attempt, one.batch)
        else:
            transcript.fact(one)
        if index >= read_at:
            data += drain(transcript)
            while transcript.need is not None and not transcript.finished:
                supply()
                data += drain(transcript)
    data += drain(transcript)
    assert transcript.finished
    assert data == expected(log, deltas)


def test_later_fact_of_a_decision_does_not_pass_its_first() -> None:
    first, other = scheduled(5, "a"), scheduled(6, "b")
    second = Entry(6, other.subject, structs.replace(other.fact, decision=None))
    transcript = Transcript(RUN)
    transcript.history([LOG[0]])
    drain(transcript)

    transcript.fact(second)

    assert drain(transcript) == b""
    assert transcript.need == LogNeeded(6)
    transcript.confirm([LOG[0], first, second])
    assert drain(transcript) == expected([first, second], {})


@pytest.mark.parametrize("lost", range(1, 7))
def test_loss_that_nothing_announces_is_noticed_by_what_follows_from_it(lost: int) -> None:
    """A route between servers loses copies, and no connection ends."""
    log = [invoked(1)]
    for number in range(3):
        cause = log[-1].seq
        log.append(scheduled(10 * number + 10, f"a-{number}", number + 1, "tool", cause))
        log.append(result(10 * number + 15, 0, f"a-{number}"))
    log.append(ended(90, 9))
    transcript = Transcript(RUN)
    transcript.history(log[:1])
    data = b""
    for index, one in enumerate(log[1:], 1):
        if index == lost:
            continue
        transcript.fact(one)
        data += drain(transcript)
        while isinstance(transcript.need, LogNeeded):
            transcript.confirm(log[: index + 1])
            data += drain(transcript)

    assert transcript.finished
    assert data == expected(log, {})


def test_open_pools_are_those_of_attempts_without_a_result() -> None:
    transcript = Transcript(RUN)
    transcript.history(
        [invoked(1), scheduled(2), scheduled(3, "b-1"), scheduled(4, "c", kind="run")]
    )
    drain(transcript)
    assert transcript.open_pools == {"agent.default"}

    transcript.fact(result(5, 0))
    transcript.fact(result(6, 0, "b-1"))
    drain(transcript)

    assert transcript.open_pools == set()


def test_event_without_a_fact_has_no_id_and_obeys_the_filter() -> None:
    event = ClientEvent(type=EventType.QUEUE_UNSERVED, run_id=RUN, data={"queue": "tool.q"})
    every = Transcript(RUN)
    every.live(event)
    assert drain(every) == frame(event)
    assert b"id:" not in frame(event)

    some = Transcript(RUN, types=frozenset({EventType.RUN_DONE}))
    some.live(event)
    assert drain(some) == b""
