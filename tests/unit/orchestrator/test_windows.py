"""Windows: what costs nothing while nobody waits, and is shared fairly when somebody does."""

from __future__ import annotations

import timeit
from collections import Counter, deque

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from penstock_orchestrator.engine.metrics import show_unserved
from penstock_orchestrator.engine.windows import BATCHES, LOWER_EVERY, Windows

QUEUE = "tool.q"


def windows(size: int) -> Windows[str]:
    return Windows(least=size)


class Pool:
    """Runs with work, and runners that take steps out in the order in which they came."""

    def __init__(self, size: int) -> None:
        self.windows = windows(size)
        self.left: dict[str, int] = {}
        self.priority: dict[str, int] = {}
        self.line: deque[str] = deque()
        self.done: list[str] = []

    def want(self, slot: str, count: int, priority: int = 0) -> None:
        self.left[slot] = self.left.get(slot, 0) + count
        self.priority[slot] = priority
        self.advance(slot)

    def advance(self, slot: str) -> None:
        """What an engine does with a run: schedule what it may."""
        wanted = self.left[slot]
        if wanted:
            tenant = slot.split("/", maxsplit=1)[0]
            given = self.windows.take(tenant, QUEUE, self.priority[slot], slot, wanted)
            self.left[slot] -= given
            self.line.extend([slot] * given)

    def step(self) -> str:
        """Let a runner finish the step that has been out for longest."""
        slot = self.line.popleft()
        self.done.append(slot)
        self.windows.release(QUEUE, slot)
        for woken in self.windows.pop_granted():
            self.advance(woken)
        return slot


def test_steps_within_the_window_go_out_at_once() -> None:
    pool = windows(10)
    assert pool.take("a", QUEUE, 0, "a/1", 10) == 10
    assert (pool.out(QUEUE), pool.waiting(QUEUE), pool.pop_granted()) == (10, 0, [])


def test_steps_beyond_the_window_wait_and_are_named_when_there_is_a_place() -> None:
    pool = windows(2)
    assert pool.take("a", QUEUE, 0, "a/1", 5) == 2
    pool.release(QUEUE, "a/1")
    assert pool.pop_granted() == ["a/1"]
    assert pool.take("a", QUEUE, 0, "a/1", 3) == 1
    assert (pool.out(QUEUE), pool.waiting(QUEUE)) == (2, 2)


def test_place_that_was_given_is_taken_by_nobody_else() -> None:
    pool = windows(1)
    assert pool.take("a", QUEUE, 0, "a/1", 1) == 1
    assert pool.take("b", QUEUE, 0, "b/1", 1) == 0
    pool.release(QUEUE, "a/1")
    assert pool.take("a", QUEUE, 0, "a/2", 1) == 0
    assert pool.pop_granted() == ["b/1"]
    assert pool.take("b", QUEUE, 0, "b/1", 1) == 1


def test_dropped_run_leaves_its_places_to_others() -> None:
    pool = windows(2)
    pool.take("a", QUEUE, 0, "a/1", 2)
    pool.take("b", QUEUE, 0, "b/1", 1)
    pool.take("c", QUEUE, 0, "c/1", 2)
    pool.drop("b/1")
    pool.drop("a/1")
    assert pool.pop_granted() == ["c/1"]
    assert pool.take("c", QUEUE, 0, "c/1", 2) == 2
    pool.drop("c/1")
    assert (pool.out(QUEUE), pool.waiting(QUEUE), pool.pop_granted()) == (0, 0, [])


def test_run_that_wants_less_than_before_gives_places_back() -> None:
    pool = windows(2)
    pool.take("a", QUEUE, 0, "a/1", 2)
    pool.take("b", QUEUE, 0, "b/1", 2)
    pool.take("c", QUEUE, 0, "c/1", 1)
    pool.release(QUEUE, "a/1", 2)
    assert pool.pop_granted() == ["b/1", "c/1"]
    assert pool.take("b", QUEUE, 0, "b/1", 0) == 0
    assert pool.take("c", QUEUE, 0, "c/1", 1) == 1
    assert pool.out(QUEUE) == 1


def test_place_that_nobody_wants_any_more_goes_to_the_next() -> None:
    pool = windows(1)
    pool.take("a", QUEUE, 0, "a/1", 1)
    pool.take("b", QUEUE, 0, "b/1", 1)
    pool.take("c", QUEUE, 0, "c/1", 1)
    pool.release(QUEUE, "a/1")
    pool.return_unused("b/1")
    assert pool.pop_granted() == ["b/1"]
    pool.return_unused("b/1")
    assert pool.pop_granted() == ["c/1"]
    assert pool.take("c", QUEUE, 0, "c/1", 1) == 1
    pool.return_unused("c/1")
    assert pool.out(QUEUE) == 1


def test_outcomes_of_steps_that_were_never_counted_free_nothing() -> None:
    pool = windows(1)
    pool.take("a", QUEUE, 0, "a/1", 1)
    pool.release(QUEUE, "b/1", 5)
    pool.release("tool.other", "b/1")
    assert pool.out(QUEUE) == 1


def test_steps_that_are_out_already_count() -> None:
    pool = windows(4)
    pool.recount("a/1", [QUEUE] * 3)
    assert pool.take("b", QUEUE, 0, "b/1", 4) == 1
    pool.drop("a/1")
    assert pool.pop_granted() == ["b/1"]
    assert pool.take("b", QUEUE, 0, "b/1", 3) == 3


def test_window_grows_with_the_runners_and_never_below_the_least() -> None:
    pool: Windows[str] = Windows(least=2, factor=1.5)
    assert pool.take("a", QUEUE, 0, "a/1", 100) == 2
    pool.resize(QUEUE, 10)
    assert pool.pop_granted() == ["a/1"]
    assert pool.take("a", QUEUE, 0, "a/1", 98) == 13
    pool.resize(QUEUE, 0)
    pool.release(QUEUE, "a/1", 13)
    assert pool.pop_granted() == []


def test_higher_priority_goes_first_and_a_lower_one_still_gets_its_eighth() -> None:
    pool = Pool(1)
    pool.want("a/low", 100, priority=-5)
    pool.want("a/high", 100, priority=5)
    pool.step()
    for _ in range(80):
        pool.step()
    counts = Counter(pool.done[1:])
    assert counts["a/low"] == 80 // LOWER_EVERY
    assert counts["a/high"] == 80 - 80 // LOWER_EVERY


def test_single_step_of_another_tenant_waits_for_about_one_window() -> None:
    pool = Pool(64)
    pool.want("big/1", 10_000)
    for _ in range(500):
        pool.step()
    pool.want("small/1", 1)
    steps = 0
    while pool.step() != "small/1":
        steps += 1
    assert steps <= 64 + 64 // BATCHES + 1


def test_small_run_of_the_same_tenant_does_not_wait_for_a_large_one() -> None:
    pool = Pool(64)
    pool.want("a/large", 10_000)
    pool.want("a/small", 3)
    steps = 0
    while Counter(pool.done)["a/small"] < 3:
        pool.step()
        steps += 1
    assert steps <= 64 + 64 // BATCHES + 2 * 3


@given(
    size=st.integers(1, 9),
    loads=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=12
    ),
)
@settings(max_examples=200)
def test_tenants_that_wait_get_the_same_share_to_within_one_step(
    size: int, loads: list[tuple[int, int, int]]
) -> None:
    pool = Pool(size)
    pool.want("first/0", size)
    for tenant, run, count in loads:
        pool.want(f"t{tenant}/{run}", count)
    total = {slot: pool.left[slot] for slot in pool.left}
    while pool.line:
        before = len(pool.line)
        pool.step()
        assert len(pool.line) <= size
        assert len(pool.line) == before or not any(pool.left.values())
        given = Counter[str]()
        for slot, count in total.items():
            given[slot.split("/", maxsplit=1)[0]] += count - pool.left[slot]
        waiting = {slot.split("/", maxsplit=1)[0] for slot, count in pool.left.items() if count}
        shares = [given[tenant] for tenant in waiting]
        assert not shares or max(shares) - min(shares) <= 1
        if shares:
            assert all(given[tenant] <= max(shares) + 1 for tenant in given)
    assert not any(pool.left.values()), "everybody has been served"
    assert pool.windows.out(QUEUE) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "room", "wait", "release", "drop", "resize", "next", "hold"]),
            st.integers(0, 5),
            st.integers(0, 12),
            st.integers(-1, 1),
        ),
        max_size=120,
    )
)
@settings(max_examples=300)
def test_window_is_kept_and_free_places_are_never_left_whatever_happens(
    moves: list[tuple[str, int, int, int]],
) -> None:
    pool: Windows[str] = Windows(least=3, factor=1.0)
    size = 3
    held_over = 0
    for move, run, count, priority in moves:
        slot = f"t{run % 3}/{run}"
        if move == "take":
            assert 0 <= pool.take(slot[:2], QUEUE, priority, slot, count) <= count
        elif move == "room":
            room = pool.room(QUEUE, slot)
            assert room == 0 or pool.take(slot[:2], QUEUE, priority, slot, room) == room
        elif move == "wait":
            pool.wait(slot[:2], QUEUE, priority, slot)
        elif move == "release":
            pool.release(QUEUE, slot, count)
        elif move == "drop":
            pool.drop(slot)
        elif move == "resize":
            size = max(3, count)
            pool.resize(QUEUE, count)
            held_over = max(held_over, pool.out(QUEUE) - size)
        elif move == "hold":
            pool.recount(slot, [QUEUE] * count)
            held_over += count
        else:
            assert len(set(named := pool.pop_granted())) == len(named)
        assert 0 <= pool.out(QUEUE) <= size + max(0, held_over)
        assert pool.waiting(QUEUE) == 0 or pool.out(QUEUE) >= size
    for run in range(6):
        pool.drop(f"t{run % 3}/{run}")
    assert (pool.out(QUEUE), pool.waiting(QUEUE), pool.pop_granted()) == (0, 0, [])


def test_take_and_release_cost_about_nothing_while_nobody_waits() -> None:
    pool = windows(100)

    def step() -> None:
        pool.take("a", QUEUE, 0, "a/1", 1)
        pool.release(QUEUE, "a/1")

    # A shared machine may be slow: the best of many, and a bound far above what is seen.
    assert min(timeit.repeat(step, number=1000, repeat=20)) / 1000 < 5e-6


def test_steps_are_unserved_while_no_live_runner_takes_them() -> None:
    pool: Windows[str] = Windows(least=2)
    assert pool.take("a", QUEUE, 0, "a/1", 3) == 2
    pool.take("a", "run.workflow", 0, "a/1", 1)
    assert pool.unserved() == {QUEUE: 3}

    pool.resize(QUEUE, 4)
    assert pool.unserved() == {}

    pool.resize(QUEUE, 0)
    assert pool.unserved() == {QUEUE: 3}


def test_metric_lists_only_pools_without_a_runner() -> None:
    def shown() -> float | None:
        return REGISTRY.get_sample_value("penstock_engine_unserved_steps", {"pool": QUEUE})

    show_unserved({QUEUE: 3})
    assert shown() == 3
    show_unserved({})
    assert shown() is None
