"""Every way of tiling says which of an image's slots shows the whole of it."""

import numpy as np
import pytest

from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.dynamic import DynamicConfig
from data_pipelines.transforms.image import ImageTransformConfig, fit
from data_pipelines.transforms.splitting import SplittingConfig

TRANSFORM = ImageTransformConfig(size=(4, 4), mode="squash")
GRADIENT = np.stack([np.linspace(0, 255, 24, dtype=np.uint8)] * 16)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize(
    "tiling",
    [
        AnyResConfig(grids=((2, 3),)),
        AnyResConfig(grids=((1, 1),), base=False),
        SplittingConfig(longest_side=3),
        DynamicConfig(max_tiles=6),
        DynamicConfig(max_tiles=2, thumbnail=False, min_tiles=1),
    ],
)
def test_the_whole_slot_shows_the_image_from_edge_to_edge(tiling):
    pixels = GRADIENT if tiling.most_slots > 2 else GRADIENT[:, 4:20]
    tiles = tiling.cut(pixels, TRANSFORM)
    whole = tiles[tiling.whole_slot(len(tiles))]
    assert np.abs(whole.astype(int) - fit(pixels, TRANSFORM)).max() <= 10


@pytest.mark.parametrize(
    "tiling", [AnyResConfig(grids=((2, 3),), base=False), DynamicConfig(max_tiles=6, thumbnail=False)]
)
def test_none_does_where_there_are_only_parts(tiling):
    tiles = tiling.cut(GRADIENT, TRANSFORM)
    assert len(tiles) == 6 and tiling.whole_slot(len(tiles)) is None
