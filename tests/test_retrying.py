"""Retries: how often, after which pauses, and without a draw from Python's generator."""

import random
from itertools import islice, repeat

import pytest

from runtime.common import retrying
from runtime.common.retrying import doubling, retry, within


class Clock:
    """Replaces `time` in the module; sleeping moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slept = 0.0, list[float]()
        monkeypatch.setattr(retrying, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_last_failure_is_raised_when_no_pause_is_left(clock: Clock) -> None:
    raised, heard = [KeyError(number) for number in range(4)], list[tuple[object, int]]()
    asked = iter(raised)

    def ask() -> None:
        raise next(asked)

    with pytest.raises(KeyError) as caught:
        retry(ask, KeyError, iter([1.0, 2.0]), lambda error, failures: heard.append((error, failures)))
    assert caught.value is raised[2]
    assert heard == [(raised[0], 1), (raised[1], 2)]
    assert clock.slept == [1.0, 2.0]


def test_another_failure_is_raised_at_once(clock: Clock) -> None:
    with pytest.raises(ZeroDivisionError):
        retry(lambda: 1 / 0, KeyError, repeat(1.0))
    assert clock.slept == []


def test_pauses_end_with_the_time(clock: Clock) -> None:
    def ask() -> None:
        clock.now += 1.0  # an answer takes its time, too
        raise KeyError

    with pytest.raises(KeyError):
        retry(ask, KeyError, within(6.5, repeat(2.0)))
    assert clock.slept == [2.0, 2.0] and clock.now == 7.0
    with pytest.raises(KeyError):
        retry(ask, KeyError, within(4.5, repeat(2.0)))
    assert clock.slept[2:] == [2.0, 0.5] and clock.now == 12.5
    assert list(within(0, repeat(2.0))) == []


def test_pauses_double_and_change_no_result() -> None:
    before = random.getstate()
    assert list(islice(doubling(0.5, (1.0, 1.0), longest=3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]
    drawn = list(islice(doubling(1.0, (0.5, 1.5), longest=1.0), 200))
    assert 0.5 <= min(drawn) < 0.7 < 1.3 < max(drawn) <= 1.5
    assert random.getstate() == before
