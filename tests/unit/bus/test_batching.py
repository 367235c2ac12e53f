"""What an append costs: the choice between singles and batches follows what is measured."""

from __future__ import annotations

import pytest

from penstock.bus.batching import CommitCost

FSYNC = 0.000_3


def synced() -> CommitCost:
    cost = CommitCost()
    cost.calibrate(round_trip=0.000_1, append=0.000_1 + FSYNC)
    return cost


def test_commit_cost_of_appends_without_fsync_is_not_slow() -> None:
    cost = CommitCost()

    cost.calibrate(round_trip=0.000_1, append=0.000_12)

    assert not cost.slow
    assert not cost.batch_pays(100)


def test_commit_cost_of_fsyncs_is_slow_and_batches_pay_for_many_only() -> None:
    cost = synced()

    assert cost.slow
    assert not cost.batch_pays(1)
    assert cost.batch_pays(200)


def test_commit_cost_of_an_append_faster_than_its_round_trip_stays_positive() -> None:
    cost = CommitCost()

    cost.calibrate(round_trip=0.000_2, append=0.000_1)

    assert cost.single > 0


@pytest.mark.parametrize("seconds", [0.0, 0.001, 5.0])
def test_commit_cost_stays_within_bounds_whatever_is_observed(seconds: float) -> None:
    cost = synced()

    for _ in range(100):
        cost.observe_group(seconds, 100, batch=True)
        cost.observe_group(seconds, 100, batch=False)

    assert 0 < cost.batch_base <= 0.02
    assert 0 <= cost.single <= 0.02


def test_commit_cost_learns_that_batches_became_dear() -> None:
    cost = synced()

    for _ in range(100):
        cost.observe_group(1.0, 20, batch=True)

    assert not cost.batch_pays(20)


def test_commit_cost_learns_that_singles_became_cheap() -> None:
    cost = synced()

    for _ in range(20):
        cost.observe_group(0.000_1 + 50 * 0.000_005, 50, batch=False)

    assert not cost.slow


def test_commit_cost_tries_the_other_way_once_in_a_while() -> None:
    cost = synced()

    answers = [cost.batch_pays(20) for _ in range(200)]

    assert 0 < answers.count(not answers[0]) <= 10
