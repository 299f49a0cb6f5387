"""Tiled images read where they are: laid out by their headers when rows are packed, cut when pixels are wanted."""

from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.record import ImagePart
from data_pipelines.rendered import ImageLayout
from data_pipelines.storage import Storage
from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig, decode_with, fit
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.image_header import HEADER_BYTES, upright_size
from data_pipelines.transforms.tiling import Size, TilingConfig, best_grid, fitted_size, image_layout


class TiledImages:
    """Images as a model with tiles takes them."""

    def __init__(self, config: TilingConfig, transform: ImageTransformConfig, features: Size, storage: Storage) -> None:
        """
        Args:
            config: which grids, and what the decoder sees of them.
            transform: its size is that of a tile; it is how the base tile is made.
            features: rows and columns of what the connector makes of one tile.
            storage: where images are read from.
        """
        self.config = config
        self._transform = transform
        self._features = features
        self._storage = storage

    def fingerprint(self) -> dict[str, Any]:
        """What layouts depend on besides the images, as JSON."""
        return {
            "grids": [list(grid) for grid in self.config.choices],
            **self.config.model_dump(mode="json", include={"base", "newline", "unpad"}),
            "tile": list(self._transform.size),
            "features": list(self._features),
        }

    def layout(self, image: ImagePart) -> ImageLayout:
        """Lays an image out by its header, which alone is read.

        What a record's metadata says of its image's size is not asked: it may be the size before the image was stored
        or before it was turned upright, and a wrong one would cost the record.

        Raises:
            ImageError: the header is damaged, of no known format, or of too large an image.
        """
        place = image.source
        length = HEADER_BYTES if place.length is None else min(place.length, HEADER_BYTES)
        beginning = self._storage.read(place.path, place.offset, length)
        height, width = upright_size(beginning, lambda: self._storage.read_range(place))
        if height * width > self._transform.max_pixels:
            detail = f"{width} x {height} takes {height * width} of {self._transform.max_pixels} pixels"
            raise ImageError("too_large", detail)
        return image_layout((height, width), self.config, self._transform.size, self._features)

    def decode(self, data: bytes, layout: ImageLayout) -> np.ndarray:
        """Decodes an image and cuts it into the tiles of its layout.

        Returns:
            u8[S, H, W, 3], where S is `layout.slots`.

        Raises:
            ImageError: as `decode_image`; "turned" where the decoded image has another size than its header said.
        """

        def arrange(image: Image.Image) -> np.ndarray:
            size = image.height, image.width
            if size != layout.size:
                raise ImageError("turned", f"height and width are {size}, but {layout.size} by the image's header")
            return cut(image, self.config, self._transform)

        return decode_with(data, self._transform, arrange)


def cut(image: Image.Image, config: TilingConfig, transform: ImageTransformConfig) -> np.ndarray:
    """Cuts an RGB image into u8[S, H, W, 3]: the base tile, if there is one, and those of the grid row by row."""
    height, width = transform.size
    rows, columns = best_grid((image.height, image.width), config, transform.size)
    area = rows * height, columns * width
    scaled = fitted_size((image.height, image.width), area)
    canvas = Image.new("RGB", area[::-1])
    place = (area[1] - scaled[1]) // 2, (area[0] - scaled[0]) // 2
    canvas.paste(image.resize(scaled[::-1], RESAMPLING[transform.resample]), place)
    tiles = np.asarray(canvas).reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    return np.concatenate([np.asarray(fit(image, transform))[None], tiles]) if config.base else tiles
