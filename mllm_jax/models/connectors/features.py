"""What a connector is given: how the encoder's features lie."""

from typing import NamedTuple

from jaxtyping import Array, Float


class FeatureGrid(NamedTuple):
    """The features of one image: `extra` of them (a class token) first, then rows of patches from the top left."""

    rows: int
    columns: int
    extra: int = 0

    @property
    def total(self) -> int:
        return self.extra + self.rows * self.columns

    def patches_only(self, connector: str) -> tuple[int, int]:
        """Rows and columns, for a connector that has no use for features beside the patches.

        Raises:
            ValueError: there are such features.
        """
        if self.extra:
            raise ValueError(
                f"a connector of kind {connector!r} takes patches alone, but the encoder hands on {self.extra} "
                "features more; set encoder.features.keep_class_token to false"
            )
        return self.rows, self.columns


def as_grid(features: Float[Array, "B P E"], grid: FeatureGrid) -> Float[Array, "B R C E"]:
    """Features laid out as rows and columns."""
    return features.reshape(features.shape[0], grid.rows, grid.columns, features.shape[-1])


def as_sequence(features: Float[Array, "B R C E"]) -> Float[Array, "B P E"]:
    """The inverse of `as_grid`."""
    return features.reshape(features.shape[0], -1, features.shape[-1])
