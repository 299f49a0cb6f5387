"""What a connector is given: how the encoder's features lie."""

from typing import NamedTuple


class FeatureGrid(NamedTuple):
    """The features of one image: `extra` of them (a class token) first, then rows of patches from the top left."""

    rows: int
    columns: int
    extra: int = 0

    @property
    def total(self) -> int:
        return self.extra + self.rows * self.columns
