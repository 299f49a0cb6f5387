"""How much bad data a run may meet before it stops, counted by cause."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LOGGER = logging.getLogger("data_pipelines")

UNFIT_CAUSES = frozenset({"too_long", "too_many_images"})
"""Causes that say a good record does not fit a row: they have a quota of their own."""

FILTERED = "filtered_"
"""Begins the causes that say a good record, or a part of one, is not wanted: no quota counts them."""

CUT = f"{FILTERED}tail"
"""Cause of what is cut off a record that is longer than a row."""

DETAIL_LIMIT = 500
"""Characters of what a skip says of itself."""

QUOTA_FLOOR = 500
"""Records over which a share is measured at least, so that one bad record among the first ten stops nothing."""


@dataclass(frozen=True, slots=True)
class Skip:
    """One record, or the rest of one shard, that was left out."""

    cause: str
    key: str
    detail: str
    """What was found, cut where it is longer than anyone reads: data decides how long it is."""

    def __post_init__(self) -> None:
        if len(self.detail) > DETAIL_LIMIT:
            object.__setattr__(self, "detail", f"{self.detail[:DETAIL_LIMIT]} ...")


class QuotaExceededError(ValueError):
    """More of the data is bad than the config allows."""


@dataclass(slots=True)
class Tally:
    """Records met (good and bad) and those left out, by cause."""

    seen: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {"seen": self.seen, "skipped": dict(sorted(self.skipped.items()))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Tally":
        return cls(seen=int(value["seen"]), skipped=Counter(value["skipped"]))


def add_tallies(tallies: Iterable[Tally]) -> Tally:
    """Returns the sum, as a new tally."""
    total = Tally()
    for tally in tallies:
        total.seen += tally.seen
        total.skipped.update(tally.skipped)
    return total


def check_quota(tallies: Iterable[Tally], skip_quota: float, unfit_quota: float) -> None:
    """Raises when the tallies together pass a quota.

    Args:
        tallies: of all lanes, or of one.
        skip_quota: share of records that may be bad; 0 stops at the first.
        unfit_quota: share of records that may be dropped because they do not fit a row.

    Raises:
        QuotaExceededError: with the counts by cause.
    """
    total = add_tallies(tallies)
    seen, skipped = total.seen, total.skipped
    unfit = Counter({cause: count for cause, count in skipped.items() if cause in UNFIT_CAUSES})
    bad = Counter({cause: count for cause, count in skipped.items() if not cause.startswith(FILTERED)}) - unfit
    measured = max(seen, QUOTA_FLOOR)
    if bad.total() > skip_quota * measured:
        raise QuotaExceededError(
            f"{bad.total()} of {seen} records are bad ({_table(bad)}), more than skip_quota = {skip_quota:g} allows. "
            "The log names one record of each cause; repair the shards or raise skip_quota."
        )
    if unfit.total() > unfit_quota * measured:
        raise QuotaExceededError(
            f"{unfit.total()} of {seen} records do not fit a row ({_table(unfit)}), more than unfit_quota = "
            f"{unfit_quota:g} allows. Raise row_length or images_per_row, set overlong to cut or cut_images, or raise "
            "unfit_quota."
        )


class SkipLog:
    """Logs the first skip of every cause, with its key; the rest are only counted."""

    def __init__(self) -> None:
        self._causes: set[str] = set()

    def note(self, skip: Skip) -> None:
        if skip.cause not in self._causes:
            self._causes.add(skip.cause)
            LOGGER.warning(
                "skipped %s: %s (%s); further skips of this cause are counted, not logged",
                skip.key,
                skip.cause,
                skip.detail,
            )


def _table(skipped: Counter[str]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in skipped.most_common())
