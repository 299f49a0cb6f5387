"""Blends of LLaVA JSON files: which records of each are taken, and that they are taken alike everywhere."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.sources.llava_blend import BlendedFile, LlavaBlendConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage


def said(number):
    return {"conversations": [{"from": "human", "value": f"{number}?"}, {"from": "gpt", "value": f"{number}"}]}


@pytest.fixture
def blend(tmp_path):
    (tmp_path / "parts").mkdir()
    for name, count in (("one.json", 10), ("two.jsonl", 5)):
        values = [said(number) for number in range(count)]
        lines = "\n".join(map(json.dumps, values))
        (tmp_path / "parts" / name).write_text(json.dumps(values) if name.endswith("json") else lines)

    def write(*datasets, **config):
        path = tmp_path / "blend.yaml"
        path.write_text(json.dumps({"datasets": list(datasets)}))
        return LlavaBlendConfig(files=str(path), **config)

    return write


def numbers(config):
    return [record.key.rpartition("/")[2] for record in records(config.open(Storage()))]


def test_each_file_gives_what_its_strategy_says(blend):
    config = blend(
        {"json_path": "parts/one.json", "sampling_strategy": "first:25%"},
        {"json_path": "parts/two.jsonl", "sampling_strategy": "end:2"},
    )
    assert numbers(config) == ["one.json:0", "one.json:1", "one.json:2", "two.jsonl:3", "two.jsonl:4"]
    assert numbers(blend({"json_path": "parts/{one.json,two.jsonl}"}))[9:11] == ["one.json:9", "two.jsonl:0"]


def test_a_random_part_is_the_same_every_time_and_another_with_another_seed(blend):
    half = {"json_path": "parts/one.json", "sampling_strategy": "random:50%"}
    chosen = numbers(blend(half))
    assert len(chosen) == 5 and chosen == numbers(blend(half))
    assert len({tuple(numbers(blend(half, seed=seed))) for seed in range(8)}) > 1
    assert blend(half).open(Storage()).fingerprint() != blend(half, seed=1).open(Storage()).fingerprint()


@given(count=st.integers(0, 50), size=st.integers(0, 120), percent=st.booleans(), seed=st.integers(0, 9))
def test_a_part_holds_each_record_once_and_as_many_as_asked(count, size, percent, seed):
    wanted = min(count, math.ceil(size * count / 100) if percent else size)
    for name in ("first", "end", "random"):
        entry = BlendedFile(json_path="x", sampling_strategy=f"{name}:{size}{'%' * percent}")
        chosen = entry.chosen(count, seed).tolist()
        assert len(chosen) == wanted and sorted(set(chosen)) == chosen and set(chosen) <= set(range(count))
    assert BlendedFile(json_path="x").chosen(count, seed).tolist() == list(range(count))


def test_walk_count_and_locate_agree(blend):
    source = blend({"json_path": "parts/one.json", "sampling_strategy": "random:7"}).open(Storage())
    entries = list(source.walk(0))
    assert [entry.place for entry in entries] == list(range(source.count(0))) == list(range(7))
    assert [source.locate(0, entry.place) for entry in entries] == entries
    assert list(source.walk(0, 4)) == entries[4:]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (
            [{"json_path": "parts/one.json", "sampling_strategy": "frist:3"}],
            r"datasets\.0\.sampling_strategy: found 'frist:3', expected all, or first",
        ),
        ([{"json_path": "parts/one.json", "strategy": "all"}], r"datasets\.0\.strategy"),
        ([{"sampling_strategy": "all"}], r"datasets\.0\.json_path"),
        ([{"json_path": "parts/none.json"}], "none.json"),
        ([], "names no file"),
    ],
)
def test_a_blend_that_says_something_else_is_refused(blend, datasets, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        blend(*datasets).open(Storage())


def test_a_file_that_is_no_blend_is_refused(tmp_path):
    path = tmp_path / "blend.yaml"
    for text, message in (
        ("- a", "found list, expected one key, datasets"),
        ("a: [", "is no YAML"),
        ("x: 1", "found x"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            LlavaBlendConfig(files=str(path)).open(Storage())
    with pytest.raises(FileNotFoundError, match="the blend"):
        LlavaBlendConfig(files=str(tmp_path / "none.yaml")).open(Storage())
