"""Parameters drawn with numpy: no compilation, and spread enough for a decoder's answers to differ."""

import jax
import numpy as np

from mllm_jax.models.parameters import ModelConfig, Parameters, abstract_parameters


def drawn_parameters(config: ModelConfig, seed: int = 0) -> Parameters:
    """Random parameters: norms' scales around 1, everything else around 0 at about the inverse root of the width."""
    generator = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        around_one = path[-1].key == "scale" or path[-1].key.endswith("_scale")
        values = float(around_one) + 0.3 * generator.standard_normal(leaf.shape)
        return jax.numpy.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_parameters(config))
