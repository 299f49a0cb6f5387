import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.packing import WAITING_LIMIT, Packer, Segment, fit, fullest
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import RenderedRecord

PICTURE = ImagePart(ByteRange("picture.png"))


def rendered(tokens, images=0, image_tokens=3, learned_from=0):
    starts = tuple(1 + image_tokens * number for number in range(images))
    learned = np.arange(tokens) >= learned_from
    return RenderedRecord("a:b", np.arange(tokens, dtype=np.int32), learned, learned, starts, (PICTURE,) * images)


def segment(tokens, images=0, place=0):
    return Segment(rendered(tokens, images), 0, 0, place)


def test_the_earliest_segments_that_fill_a_row_exactly_are_taken():
    assert fullest([(5, 1), (4, 0), (2, 0), (3, 1), (1, 0)], row_length=10, images_per_row=2) == [0, 2, 3]


def test_image_slots_bound_a_row_as_tokens_do():
    assert fullest([(2, 1), (6, 2), (3, 1)], row_length=10, images_per_row=2) == [0, 2]


SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(sizes=SIZES)
def test_no_other_choice_fills_a_row_better(sizes):
    """Against every subset that holds the first."""
    chosen = fullest(sizes, row_length=20, images_per_row=3)
    best = 0
    for subset in range(1, 2 ** len(sizes), 2):
        picked = [size for index, size in enumerate(sizes) if subset >> index & 1]
        tokens, images = (sum(column) for column in zip(*picked, strict=True))
        best = max(best, tokens if tokens <= 20 and images <= 3 else 0)
    assert 0 in chosen
    assert sum(sizes[index][0] for index in chosen) == best
    assert sum(sizes[index][1] for index in chosen) <= 3


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(2, 20), st.integers(0, 3)), min_size=1, max_size=60))
def test_nothing_is_lost_or_repeated_and_the_oldest_goes_first(sizes):
    packer = Packer(row_length=20, images_per_row=3, open_rows=2)
    out = []
    for place, (tokens, images) in enumerate(sizes):
        packer.add(segment(tokens, images if images * 3 < tokens else 0, place))
        while packer.ready:
            oldest = packer.waiting[0]
            row = packer.take()
            assert row[0] is oldest
            assert sum(part.tokens for part in row) <= 20 and sum(part.images for part in row) <= 3
            out += row
    assert sorted(part.place for part in [*out, *packer.waiting]) == list(range(len(sizes)))


def test_the_shortest_records_do_not_wait_without_end():
    packer = Packer(row_length=10**6, images_per_row=0, open_rows=9)
    for place in range(WAITING_LIMIT):
        assert not packer.ready
        packer.add(segment(2, place=place))
    assert packer.ready and len(packer.take()) == WAITING_LIMIT


def test_rows_of_long_conversations_are_nearly_full():
    """The lengths of LLaVA: an image of 576 tokens and text with a long tail."""
    random = np.random.default_rng(0)
    packer = Packer(row_length=2048, images_per_row=4, open_rows=16)
    filled = rows = 0
    for length in np.exp(random.normal(4.8, 0.9, 3000)).astype(int) + 576:
        packer.add(segment(min(int(length), 2048), 1))
        if packer.ready:
            filled += sum(part.tokens for part in packer.take())
            rows += 1
    assert filled / rows / 2048 > 0.97


def test_a_record_that_fits_passes_unchanged():
    record = rendered(10, images=2)
    assert fit(record, 10, 2, 3, "drop") is record


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        (rendered(30), "too_long"),
        (rendered(12, images=3), "too_many_images"),
        (rendered(8, learned_from=8), "nothing_supervised"),
    ],
)
def test_a_record_that_does_not_fit_is_dropped(record, cause):
    skip = fit(record, 20, 2, 3, "drop")
    assert isinstance(skip, Skip) and skip.cause == cause and skip.key == "a:b"


def test_text_behind_the_last_image_is_cut_if_asked():
    cut = fit(rendered(30, images=1), 20, 2, 3, "cut")
    assert cut.tokens.tolist() == list(range(20)) and len(cut.supervised) == 20 and cut.image_starts == (1,)


@pytest.mark.parametrize("record", [rendered(30, images=2, image_tokens=12), rendered(30, learned_from=25)])
def test_an_image_is_never_cut_and_no_record_is_left_without_an_answer(record):
    assert fit(record, 20, 2, 12, "cut").cause == "too_long"
