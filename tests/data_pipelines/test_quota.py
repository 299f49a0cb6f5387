from collections import Counter

import pytest

from data_pipelines.quota import QuotaExceededError, Skip, SkipLog, Tally, check_quota


def test_what_a_skip_says_has_a_limit():
    assert Skip("bad", "a:0", "x" * 9).detail == "x" * 9
    assert len(Skip("bad", "a:0", "x" * 10**6).detail) < 600


def tally(seen, **skipped):
    return Tally(seen, Counter(skipped))


@pytest.mark.parametrize(
    "tallies",
    [
        [tally(1000, not_utf8=10)],
        [tally(20, truncated=5)],
        [tally(1000), tally(1000, bad_json=20)],
        [tally(1000, too_long=250)],
    ],
)
def test_what_the_quota_allows(tallies):
    check_quota(tallies, skip_quota=0.01, unfit_quota=0.25)


@pytest.mark.parametrize(
    ("tallies", "says"),
    [
        ([tally(1000, not_utf8=11)], "11 of 1000 records are bad .not_utf8 11"),
        ([tally(20, truncated=6)], "skip_quota = 0.01"),
        ([tally(600, bad_json=7), tally(600, bad_json=6)], "13 of 1200"),
        ([tally(1000, too_long=251)], "unfit_quota"),
        ([tally(1000, too_long=46, no_answer=11)], r"11 of 1000 records are bad \(no_answer 11\)"),
    ],
)
def test_what_passes_a_quota_stops_with_the_counts(tallies, says):
    with pytest.raises(QuotaExceededError, match=says):
        check_quota(tallies, skip_quota=0.01, unfit_quota=0.25)


def test_a_quota_of_nothing_stops_at_the_first():
    with pytest.raises(QuotaExceededError):
        check_quota([tally(1, truncated=1)], 0.0, 1.0)


def test_each_cause_is_logged_once_with_its_key(caplog):
    log = SkipLog()
    for key in ("a:1", "a:2"):
        log.note(Skip("not_utf8", key, "byte 3"))
        log.note(Skip("bad_json", key, "line 1"))
    assert len(caplog.records) == 2
    assert "a:1" in caplog.text and "a:2" not in caplog.text


def test_a_tally_survives_json():
    before = tally(7, bad_json=2, truncated=1)
    assert Tally.from_json(before.to_json()) == before
