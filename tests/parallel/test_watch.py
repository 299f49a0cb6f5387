"""Processes that watch one another: when one is gone, the others end at once and say which one it was."""

import pytest

from mllm_jax.parallel.watch import LOST_EXIT_CODE
from tests.support.processes import ended, start_group, until

SOON = 60
"""Seconds; JAX's heartbeats would take 100."""


def group(how):
    return start_group("tests.support.watched", [how], processes=2, devices=1)


@pytest.mark.parametrize(("victim", "how"), [(0, "waits"), (1, "waits"), (1, "computes")])
def test_when_a_process_is_killed_the_other_ends_at_once_wherever_it_waits(victim, how):
    pair = group(how)
    for process in pair:
        until(process, "together")
    pair[victim].kill()
    code, output = ended(pair[1 - victim], SOON)
    ended(pair[victim])
    assert code == LOST_EXIT_CODE, output
    assert f"mllm: process {1 - victim} of 2 ends because process {victim} is gone" in output
    assert "start all processes again with the same command" in output


def test_a_process_that_fails_alone_says_why_and_takes_the_others_with_it():
    first, second = group("fails")
    code, output = ended(second, SOON)
    assert (code, "mllm: process 1 of 2 failed: shard 7 is torn" in output) == (1, True), output
    code, output = ended(first, SOON)
    assert (code, "process 1 is gone" in output) == (LOST_EXIT_CODE, True), output


def test_processes_that_finish_disturb_nobody():
    for process in group("finishes"):
        code, output = ended(process)
        assert (code, "mllm:" in output) == (0, False), output
