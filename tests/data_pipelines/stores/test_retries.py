import pytest

from data_pipelines.stores.retries import Retries


class Clock:
    """Time that passes in pauses alone."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def pause(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    def __call__(self):
        return self.now


def failing(times):
    left = [OSError("the network is down")] * times

    def action():
        if left:
            raise left.pop()
        return b"abc"

    return action


def retries(clock, **changes):
    values = {"attempts": 5, "first_wait": 1.0, "longest_wait": 20.0, "give_up": 300.0}
    return Retries(**(values | changes), pause=clock.pause, clock=clock)


def test_waits_grow_are_spread_and_have_a_limit():
    clock = Clock()
    assert retries(clock, attempts=9).run(failing(8), "file") == b"abc"
    expected = [1, 2, 4, 8, 16, 20, 20, 20]
    assert all(least <= wait <= 1.5 * least for least, wait in zip(expected, clock.waits, strict=True))
    other = Clock()
    retries(other, attempts=9).run(failing(8), "file")
    assert other.waits != clock.waits


def test_no_attempt_begins_after_the_time_is_over():
    clock = Clock()
    with pytest.raises(OSError, match=r"could not read file in \d attempts and .* s; the last error was: the network"):
        retries(clock, attempts=1000, give_up=30.0).run(failing(999), "file")
    assert clock.now <= 30.0


def test_every_failure_that_is_not_the_last_is_told():
    told = []
    with pytest.raises(OSError, match="file at byte 7 in 3 attempts"):
        retries(Clock(), attempts=3, failed=told.append).run(failing(3), "file at byte 7")
    assert told == [f"attempt {number} to read file at byte 7 failed (the network is down)" for number in (1, 2)]
