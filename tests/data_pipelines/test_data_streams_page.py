"""docs/data_streams.md: the table of the shuffle is what the benchmark measures, to the digit; mixtures are as said."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_pipelines.mixture import MixtureConfig
from tests.support.benchmark_modules import benchmark

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "data_streams.md").read_text(encoding="utf-8")
ROWS = ROW.findall(PAGE)
MIXTURES = re.findall(r"^(mixture: .*?) *#", PAGE, re.MULTILINE)
SHARDS, SAMPLES, BATCH, BATCHES = 64, 2000, 256, 50


def test_there_are_rows():
    assert len(ROWS) >= 6


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_a_row_is_what_is_measured(row):
    shuffle = benchmark("shuffle")
    lanes, open_shards, window, shards = map(int, row[:4])
    draw = shuffle.drawn(shuffle.Numbered(SHARDS, SAMPLES), lanes, open_shards, window)
    batches = [np.array([draw() for _ in range(BATCH)]) for _ in range(BATCHES)]
    found = shuffle.told(batches, SAMPLES, SHARDS * SAMPLES)
    assert found == {"shards": shards, "near": float(row[4]), "spread": float(row[5])}


def test_mixtures_repeat_or_end_as_the_page_says():
    written = [MixtureConfig.model_validate(yaml.safe_load(line)["mixture"]) for line in MIXTURES]
    assert [(mixture.rule, mixture.ends) for mixture in written] == [
        ("repeat", False),
        ("repeat", False),
        ("renormalise", True),
        ("stop", True),
    ]
