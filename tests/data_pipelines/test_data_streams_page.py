"""docs/data_streams.md: the table of the shuffle is what the benchmark measures, and its mixtures are what it says."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_pipelines.draws import portions_of
from data_pipelines.mixture import MixtureConfig
from tests.support.benchmark_modules import benchmark
from tests.support.tiny_stream import MemorySource

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "data_streams.md").read_text(encoding="utf-8")
ROWS = ROW.findall(PAGE)
MIXTURES = [
    MixtureConfig.model_validate(yaml.safe_load(block)["mixture"])
    for block in re.findall(r"```yaml\n(mixture: .*?)```", PAGE, re.DOTALL)
]
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


def test_its_mixtures_are_what_it_says():
    sizes = {"pairs": 900, "chats": 100, "text": 400}
    sources = {name: MemorySource([size], indexed=True) for name, size in sizes.items()}
    found = [
        [(portion.weight, portion.passes and portion.passes.epochs) for portion in portions_of(mixture, sources)]
        for mixture in MIXTURES
    ]
    assert found == [
        [(3, None), (1, None)],
        [(900, 1), (250, 2.5)],
        [(3, 1), (1, None)],
        [(30, None), (10, None), (20, None)],
        [(3, 1), (1, 1)],
    ]
    assert [mixture.rule for mixture in MIXTURES] == ["repeat", "renormalise", "renormalise", "repeat", "stop"]
