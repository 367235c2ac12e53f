"""The table of streams, buckets and durables: what makes the log a log."""

from __future__ import annotations

from penstock.bus.topology import SHARDS_KEY, StreamConfig, consumer_table, stream_table
from penstock.contracts import subjects
from penstock.settings import CoreSettings

SETTINGS = CoreSettings(shards=4, streams_replicas=3, ack_wait_seconds=7)


def streams() -> dict[str, StreamConfig]:
    return {stream["name"]: stream for stream in stream_table(SETTINGS)}


def test_runs_states_each_fact_once_and_remembers_its_shards() -> None:
    runs = streams()[subjects.RUNS]

    assert runs["max_msgs_per_subject"] == 1
    assert runs["discard"] == "new"
    assert runs["discard_new_per_subject"] is True
    assert runs["metadata"] == {SHARDS_KEY: "4"}
    assert runs["republish"] == {"src": subjects.RUN_SPACE, "dest": subjects.LIVE_SPACE}


def test_large_bodies_outlive_the_facts_that_claim_them() -> None:
    found = streams()

    assert found[f"OBJ_{subjects.ARTIFACTS}"]["max_age"] == 400 * 86_400 * 10**9
    assert found[subjects.RUNS]["max_age"] == 0


def test_every_stream_has_the_replicas_of_the_settings() -> None:
    assert {stream["num_replicas"] for stream in streams().values()} == {3}


def test_streams_do_not_overlap() -> None:
    spaces = [space for stream in streams().values() for space in stream["subjects"]]

    assert len(spaces) == len(set(spaces))
    assert not any(
        one != other and other.startswith(one.removesuffix(">"))
        for one in spaces
        for other in spaces
    )


def test_each_shard_has_a_consumer_of_inputs_and_one_of_timers() -> None:
    found = {
        (stream, consumer["durable_name"]): consumer
        for stream, consumer in consumer_table(SETTINGS)
    }

    for shard in range(4):
        inputs = found[subjects.RUNS, subjects.engine_consumer(shard)]
        timers = found[subjects.TIMERS, subjects.timer_consumer(shard)]
        assert inputs["filter_subject"] == subjects.engine_filter(shard)
        assert timers["filter_subject"] == subjects.timer_due_filter(shard)
        assert inputs["ack_policy"] == timers["ack_policy"] == "explicit"
        assert inputs["ack_wait"] == 7_000_000_000
    assert len(found) == 9


def test_no_consumer_gives_up_a_message_by_itself() -> None:
    assert {consumer["max_deliver"] for _, consumer in consumer_table(SETTINGS)} == {-1}
