"""Blends of LLaVA JSON files: which records of each are taken, and that they are taken alike everywhere."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
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


@given(count=st.integers(0, 50), size=st.integers(0, 100), percent=st.booleans(), seed=st.integers(0, 9))
def test_a_part_holds_each_record_once_and_as_many_as_asked(count, size, percent, seed):
    wanted = min(count, math.ceil(size * count / 100) if percent else size)
    for name in ("first", "end", "random"):
        entry = BlendedFile(json_path="x", sampling_strategy=f"{name}:{size}{'%' * percent}")
        chosen = list(entry.chosen(count, seed))
        assert len(chosen) == wanted and sorted(set(chosen)) == chosen and set(chosen) <= set(range(count))
    assert list(BlendedFile(json_path="x").chosen(count, seed)) == list(range(count))


@given(count=st.integers(0, 50), size=st.integers(0, 50))
def test_the_first_and_the_other_last_records_are_disjoint_and_together_all(count, size):
    first = BlendedFile(json_path="x", sampling_strategy=f"first:{size}").chosen(count, 0)
    last = BlendedFile(json_path="x", sampling_strategy=f"end:{max(0, count - size)}").chosen(count, 0)
    assert [*first, *last] == list(range(count))


STRATEGIES = ["all", *(f"{name}:{size}" for name in ("first", "end", "random") for size in (0, 4, "30%"))]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    strategies=st.lists(st.sampled_from(STRATEGIES), min_size=1, max_size=4),
    start=st.integers(0, 12),
    seed=st.integers(0, 3),
)
def test_walk_count_and_locate_agree_and_keys_say_where_a_record_stands(blend, strategies, start, seed):
    names = ["parts/one.json", "parts/two.jsonl"] * 2
    datasets = [{"json_path": name, "sampling_strategy": each} for name, each in zip(names, strategies, strict=False)]
    source = blend(*datasets, seed=seed).open(Storage())
    for shard in range(len(strategies)):
        entries = list(source.walk(shard))
        assert [entry.place for entry in entries] == list(range(source.count(shard)))
        assert [source.locate(shard, entry.place) for entry in entries] == entries
        assert list(source.walk(shard, start)) == entries[start:]
        found = [source.read(entry) for entry in entries]
        assert [record.turns[1].parts[0].text for record in found] == [
            record.key.rpartition(":")[2] for record in found
        ]


def test_where_a_file_breaks_off_is_told_whatever_part_of_it_is_taken(blend, tmp_path):
    file = tmp_path / "parts" / "one.json"
    file.write_bytes(file.read_bytes()[:-30])
    for strategy, places in (("first:2", [0, 1]), ("end:2", [7, 8]), ("random:0", []), ("first:100%", range(9))):
        found = list(records(blend({"json_path": "parts/one.json", "sampling_strategy": strategy}).open(Storage())))
        assert [record.key.rpartition(":")[2] for record in found] == [*map(str, places), "9"]
        assert found[-1].cause == "truncated"


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (
            [{"json_path": "parts/one.json", "sampling_strategy": "frist:3"}],
            r"datasets\.0\.sampling_strategy: found 'frist:3', expected all, or first.*Did you mean 'first'",
        ),
        ([{"json_path": "parts/one.json", "sampling_strategy": "end:101%"}], "found 'end:101%'.*percentage up to 100"),
        ([{"json_path": "parts/one.json", "sampling_strategy": 3}], r"datasets\.0\.sampling_strategy: found 3"),
        (
            [{"json_path": "parts/one.json", "sampling_stategy": "all"}],
            r"datasets\.0\.sampling_stategy: unknown key\. Did you mean 'sampling_strategy'\?",
        ),
        (
            [{"sampling_strategy": "all"}, {"json_path": "x", "sampling_strategy": "some"}],
            r"datasets\.0\.json_path: this key is needed; datasets\.1\.sampling_strategy: found 'some'",
        ),
        (
            [{"json_path": "parts/none.json"}, {"json_path": "parts/one.json"}, {"json_path": "*.jsonl"}],
            r"datasets\.0\.json_path: .*none\.json; datasets\.2\.json_path: .*no file matches.*relative to",
        ),
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
