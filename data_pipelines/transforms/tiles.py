"""Tiled images read where they are: laid out by their headers when rows are packed, cut when pixels are wanted."""

from typing import Any

import numpy as np

from data_pipelines.record import ImagePart
from data_pipelines.rendered import ImageLayout
from data_pipelines.storage import Storage
from data_pipelines.transforms.image import ImageTransformConfig, decode_with
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.image_header import HEADER_BYTES, upright_size
from data_pipelines.transforms.separate_tiles import TileMarks
from data_pipelines.transforms.tile_grid import Size
from data_pipelines.transforms.tiling import TilingConfig, image_layout


class TiledImages:
    """Images as a model with tiles takes them."""

    def __init__(
        self,
        config: TilingConfig,
        transform: ImageTransformConfig,
        features: Size,
        storage: Storage,
        marks: TileMarks | None = None,
    ) -> None:
        """
        Args:
            config: which grids, and what the decoder sees of them.
            transform: its size is that of a tile; it is how the base tile is made.
            features: rows and columns of what the connector makes of one tile.
            storage: where images are read from.
            marks: what stands between the tiles; None: nothing does.
        """
        self.config = config
        self._transform = transform
        self._features = features
        self._storage = storage
        self._marks = marks

    def fingerprint(self) -> dict[str, Any]:
        """What layouts depend on besides the images, as JSON."""
        return {
            **self.config.fingerprint(),
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
        beginning = self._storage.read_image(place, HEADER_BYTES)
        height, width = upright_size(beginning, lambda: self._storage.read_image(place))
        if height * width > self._transform.max_pixels:
            detail = f"{width} x {height} takes {height * width} of {self._transform.max_pixels} pixels"
            raise ImageError("too_large", detail)
        return image_layout((height, width), self.config, self._transform.size, self._features, self._marks)

    def decode(self, data: bytes, layout: ImageLayout) -> np.ndarray:
        """Decodes an image and cuts it into the tiles of its layout.

        Returns:
            u8[S, H, W, 3], where S is `layout.slots`.

        Raises:
            ImageError: as `decode_image`; "turned" where the decoded image has another size than its header said.
        """

        def arrange(pixels: np.ndarray) -> np.ndarray:
            size = pixels.shape[0], pixels.shape[1]
            if size != layout.size:
                raise ImageError("turned", f"height and width are {size}, but {layout.size} by the image's header")
            return self.config.cut(pixels, self._transform)

        return decode_with(data, self._transform, arrange)
