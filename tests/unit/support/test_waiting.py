import pytest

from tests.support.waiting import eventually


async def test_eventually_value_comes_later_is_returned() -> None:
    answers = iter([0, None, 7])

    assert await eventually(lambda: next(answers), every=0) == 7


async def test_eventually_never_true_fails_with_last_value() -> None:
    with pytest.raises(AssertionError, match="last value: 0"):
        await eventually(lambda: 0, within=0)


async def test_eventually_async_probe_with_assertion_is_tried_again() -> None:
    calls = 0

    async def probe() -> bool:
        nonlocal calls
        calls += 1
        assert calls > 2
        return True

    assert await eventually(probe, every=0)
