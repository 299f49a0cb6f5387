"""Images in the grid nearest to their shape, against the processor that transformers has for InternVL."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from transformers import GotOcr2ImageProcessorPil

from data_pipelines.transforms.dynamic import DynamicConfig
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.tiling import image_layout

FEATURES = 4
BOUNDS = st.tuples(st.integers(1, 12), st.integers(2, 12)).map(lambda pair: (min(pair), max(*pair)))


def their_processor(tiling: DynamicConfig, tile: tuple[int, int]) -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(
        size={"height": tile[0], "width": tile[1]},
        crop_to_patches=True,
        min_patches=tiling.min_tiles,
        max_patches=tiling.max_tiles,
        do_rescale=False,
        do_normalize=False,
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), bounds=BOUNDS)
@example(size=(448, 448), bounds=(1, 12))
@example(size=(634, 634), bounds=(1, 12))
@example(size=(633, 633), bounds=(1, 12))
@example(size=(1, 3000), bounds=(1, 12))
def test_an_image_takes_as_many_slots_as_by_transformers(size, bounds):
    tiling = DynamicConfig(min_tiles=bounds[0], max_tiles=bounds[1])
    layout = image_layout(size, tiling, (448, 448), (1, 256))

    assert layout.slots == their_processor(tiling, (448, 448)).get_number_of_image_patches(*size) <= tiling.most_slots
    assert layout.index.tolist() == list(range(layout.slots * 256))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(1, 90), st.integers(1, 90)), bounds=BOUNDS)
@example(size=(10, 10), bounds=(1, 2))
@example(size=(90, 7), bounds=(1, 12))
def test_tiles_are_those_of_transformers_to_the_byte(size, bounds):
    tiling, tile = DynamicConfig(min_tiles=bounds[0], max_tiles=bounds[1]), (12, 16)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    theirs = their_processor(tiling, tile)(image, return_tensors="np")
    ours = tiling.cut(np.asarray(image), ImageTransformConfig(size=tile))

    np.testing.assert_array_equal(ours, theirs["pixel_values"].transpose(0, 2, 3, 1))
    assert image_layout(size, tiling, tile, (1, FEATURES)).slots == len(ours) == theirs["num_patches"][0]


def test_the_thumbnail_can_be_left_out():
    tiling = DynamicConfig(thumbnail=False)
    image = np.zeros((450, 900, 3), np.uint8)

    assert tiling.most_slots == 12
    assert image_layout((450, 900), tiling, (448, 448), (1, 256)).slots == 2
    assert tiling.cut(image, ImageTransformConfig(size=(448, 448))).shape == (2, 448, 448, 3)


def test_bounds_that_leave_no_grid_are_refused():
    with pytest.raises(ValidationError, match="min_tiles is 7, but max_tiles is 6"):
        DynamicConfig(min_tiles=7, max_tiles=6)
