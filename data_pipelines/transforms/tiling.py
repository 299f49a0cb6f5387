"""The ways in which an image becomes several tiles of the encoder's size, by `kind`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from data_pipelines.rendered import ImageLayout
from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.dynamic import DynamicConfig
from data_pipelines.transforms.separate_tiles import TileMarks
from data_pipelines.transforms.splitting import SplittingConfig
from data_pipelines.transforms.tile_grid import Size


def _of_a_kind(value: Any) -> Any:
    return {"kind": "anyres"} | value if isinstance(value, dict) else value


TilingConfig = Annotated[
    AnyResConfig | SplittingConfig | DynamicConfig, Field(discriminator="kind"), BeforeValidator(_of_a_kind)
]
"""One that does not say its kind is `anyres`."""


def image_layout(
    size: Size, config: TilingConfig, tile: Size, features: Size, marks: TileMarks | None = None
) -> ImageLayout:
    """The one place that says how many slots and tokens an image takes, and which feature or mark each token is.

    Args:
        size: of the image in pixels.
        config: how it is tiled.
        tile: of a tile in pixels.
        features: rows and columns of what the connector makes of one tile.
        marks: what stands between the tiles (`tile_marks`); None: nothing does.

    Raises:
        ImageError: "too_thin": an image that is all padding, where there is no base tile to show it.
    """
    if isinstance(config, AnyResConfig):
        return config.layout(size, tile, features)
    return config.layout(size, tile, features[0] * features[1], marks)
