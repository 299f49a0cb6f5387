from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.packing import WAITING_LIMIT, Packer, Segment, fit, fullest
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import ImageLayout, RenderedRecord

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


def document(*pieces, image_tokens=3):
    """A record of texts (their lengths) and images (None), all text learned."""
    learned, starts = [False], []
    for piece in pieces:
        if piece is None:
            starts.append(len(learned))
        learned += [piece is not None] * (image_tokens if piece is None else piece)
    marks = np.array(learned)
    tokens = np.arange(len(learned), dtype=np.int32)
    return RenderedRecord("a:b", tokens, marks, marks, tuple(starts), (PICTURE,) * len(starts))


@pytest.mark.parametrize(
    ("pieces", "length", "images"),
    [
        ((4, None, 4, None, 4), 19, 2),  # It fits.
        ((4, None, 9, None, 4), 17, 1),  # The second image does not fit whole.
        ((4, None, 4, None, 2, None, 2), 17, 2),  # A third image has no slot.
        ((4, None, 30, None, 4), 20, 1),  # The text before the second image is cut.
        ((15, None, None, 5), 16, 0),  # No text would follow the first image.
        ((40, None), 20, 0),
    ],
)
def test_a_document_ends_before_its_first_image_that_does_not_fit_if_asked(pieces, length, images):
    cut = fit(document(*pieces), 20, 2, 3, "cut_images")
    assert (len(cut.tokens), len(cut.supervised), len(cut.in_answer)) == (length,) * 3
    assert len(cut.images) == len(cut.image_starts) == images


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.one_of(st.none(), st.integers(1, 12)), min_size=1, max_size=9),
    row_length=st.integers(4, 40),
    slots=st.integers(0, 3),
    tiled=st.booleans(),
)
def test_what_is_cut_is_a_prefix_with_whole_images(pieces, row_length, slots, tiled):
    whole = document(*pieces)
    if tiled:
        layout = ImageLayout(2, np.arange(3, dtype=np.int32))
        whole = replace(whole, layouts=(layout,) * len(whole.images))
    cut = fit(whole, row_length, slots, 3, "cut_images")
    if isinstance(cut, Skip):
        first = whole.image_starts[0] if whole.image_starts else len(whole.tokens)
        assert not whole.supervised[1 : min(first, row_length)].any()
        return
    assert cut.length <= row_length and cut.slots <= slots and cut.supervised[1:].any()
    assert cut.tokens.tolist() == whole.tokens[: len(cut.tokens)].tolist()
    assert cut.image_starts == whole.image_starts[: len(cut.images)]
    assert all(start + 3 <= len(cut.tokens) for start in cut.image_starts)
    assert not any(start < len(cut.tokens) for start in whole.image_starts[len(cut.images) :])
