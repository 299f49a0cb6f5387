import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.draws import Draws, choose, planned_entries, portions_of
from data_pipelines.mixture import MixtureConfig
from data_pipelines.passes import passes_of
from data_pipelines.sources.source import entry_counts
from tests.support.tiny_stream import MemorySource

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


def drawn(weights, draws):
    counts = [0] * len(weights)
    order = []
    for _ in range(draws):
        order.append(choose(weights, counts))
        counts[order[-1]] += 1
    return order


def mixture(**written):
    return MixtureConfig.model_validate(written)


def test_a_blend_of_three_to_one():
    order = drawn([3, 1], 8)
    assert [order.count(source) for source in (0, 1)] == [6, 2]


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, begin=st.integers(0, 150), length=st.integers(1, 150))
def test_every_stretch_keeps_the_shares_to_within_a_record_or_two(weights, begin, length):
    stretch = drawn(weights, begin + length)[begin:]
    bound = sum(1 / number for number in range(1, len(weights) + 1))
    for source, weight in enumerate(weights):
        assert abs(stretch.count(source) - length * weight / sum(weights)) < bound + 1e-9


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, sizes=st.data(), rule=st.sampled_from(["stop", "renormalise"]), stop=st.integers(0, 40))
def test_what_runs_out_ends_the_draws_or_leaves_them_to_the_others(weights, sizes, rule, stop):
    """Also after a restart in the middle, from the counts and what has run out."""
    held = sizes.draw(st.lists(st.integers(0, 12), min_size=len(weights), max_size=len(weights)))
    draws = Draws(weights, rule, [0] * len(weights))
    order = []
    while (source := draws.next()) is not None:
        if len(order) == stop:
            draws = Draws(weights, rule, draws.counts, draws.run_out)
        if draws.counts[source] == held[source]:
            draws.end(source)
        else:
            draws.counts[source] += 1
            order.append(source)
    if rule == "renormalise":
        assert draws.counts == held
    else:
        (ended,) = draws.run_out
        assert draws.counts[ended] == held[ended] and order == drawn(weights, len(order))


def test_the_others_keep_their_proportions_when_one_is_gone():
    draws = Draws([5, 2, 1], "renormalise", [50, 20, 10], run_out=[0])
    for _ in range(30):
        draws.counts[draws.next()] += 1
    assert draws.counts == [50, 40, 20]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 900), min_size=1, max_size=4), temperature=st.floats(0.5, 20))
def test_a_temperature_gives_weights_by_size(sizes, temperature):
    """Raffel et al. 2020, section 3.5.2: the rates of their examples-proportional mixing to the power of 1 / T."""
    sources = {f"s{number}": MemorySource([size, size], indexed=False) for number, size in enumerate(sizes)}
    found = portions_of(mixture(temperature=temperature, **dict.fromkeys(sources, 1)), sources)
    rates = [(2 * size / sum(2 * each for each in sizes)) ** (1 / temperature) for size in sizes]
    total = sum(portion.weight for portion in found)
    for portion, rate in zip(found, rates, strict=True):
        assert portion.weight / total == pytest.approx(rate / sum(rates))


def test_a_weight_beside_a_temperature_multiplies():
    sources = {"a": MemorySource([100], indexed=True), "b": MemorySource([400], indexed=True)}
    a, b = portions_of(mixture(a=3, b={"epochs": 2}, temperature=2, exhausted="stop"), sources)
    assert (a.weight, b.weight) == (30, 20) and a.passes is None and b.passes.epochs == 2


def test_epochs_alone_are_drawn_so_that_all_run_out_together():
    sources = {"a": MemorySource([100, 20], indexed=True), "b": MemorySource([40], indexed=False)}
    portions = portions_of(mixture(a={"epochs": 1.5}, b={"epochs": 3}), sources)
    assert [portion.weight for portion in portions] == [180, 120]
    assert planned_entries(portions, sources) == {"a": 180, "b": 120}


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=9), tenths=st.integers(1, 49))
def test_part_of_an_epoch_is_its_share_of_every_shard(sizes, tenths):
    source = MemorySource(sizes, indexed=False)
    passes = passes_of(tenths / 10, lambda: entry_counts(source))
    assert passes.entries(sum(sizes)) == tenths * sum(sizes) // 10
    if passes.ends is not None:
        assert all(abs(end - size * (tenths % 10) / 10) < 1 for end, size in zip(passes.ends, sizes, strict=True))


@pytest.mark.parametrize(
    "written", [{"a": {"epochs": 0.5}}, {"a": {"epochs": 1}, "b": {"epochs": 1}}, {"a": 1, "temperature": 2.0}]
)
def test_what_depends_on_sizes_says_how_they_become_known(written):
    sources = {name: MemorySource([5], indexed=False, counted=False) for name in "ab"}
    with pytest.raises(ValueError, match=r"source a \(shards from shard-0 on\): .* run `mllm data index`"):
        portions_of(mixture(**written), sources)


def test_whole_epochs_of_one_source_need_no_size():
    sources = {"a": MemorySource([5], indexed=False, counted=False)}
    ((_, weight, passes),) = portions_of(mixture(a={"epochs": 2}), sources)
    assert weight == 1 and passes.begun == 2


@pytest.mark.parametrize(
    ("written", "rule", "ends"),
    [
        ({"a": 1, "b": 2}, "repeat", False),
        ({"a": 1, "b": 2, "exhausted": "stop"}, "stop", True),
        ({"a": 1, "b": 2, "exhausted": "renormalise"}, "renormalise", True),
        ({"a": {"epochs": 1}}, "renormalise", True),
        ({"a": {"epochs": 1}, "b": {"epochs": 2}, "exhausted": "repeat"}, "repeat", False),
        ({"a": {"epochs": 1, "weight": 2}, "b": 1}, "renormalise", False),
        ({"a": {"epochs": 1, "weight": 2}, "b": 1, "exhausted": "stop"}, "stop", True),
    ],
)
def test_which_mixtures_end(written, rule, ends):
    found = mixture(**written)
    assert (found.rule, found.ends) == (rule, ends)
    assert not found.endless.ends and mixture(**found.model_dump(mode="json")) == found


def test_plain_weights_are_written_as_they_always_were():
    assert mixture(a=1, b={"weight": 2}).model_dump(mode="json") == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "not all 0"),
        ({"a": 0}, "not all 0"),
        ({"a": "much"}, "expected the weight of a source"),
        ({"a": True}, "expected the weight of a source"),
        ({"exhuasted": "stop"}, "beside the sources a mixture has the keys exhausted and temperature"),
        ({"a": {}}, "write a weight"),
        ({"a": {"epochs": 0}}, "greater than 0"),
        ({"a": {"epoch": 1}}, "Extra inputs"),
        ({"a": {"epochs": 1}, "b": 1}, "no common measure"),
        ({"a": {"epochs": 1}, "exhausted": "repeat"}, "which exhausted: repeat never lets it"),
        ({"a": 1, "exhausted": "end"}, "'repeat', 'stop' or 'renormalise'"),
        ({"a": 1, "temperature": 0}, "greater than 0"),
    ],
)
def test_a_mixture_that_says_nothing_or_two_things_is_an_error(written, message):
    with pytest.raises(ValidationError, match=message):
        mixture(**written)
