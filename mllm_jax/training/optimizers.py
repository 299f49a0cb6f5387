"""Optimizers, as values of a config."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import optax
from flax.traverse_util import flatten_dict
from optax.contrib import MuonDimensionNumbers, muon
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.models.layers.projection import sides_of
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.patterns import leaf_path, matches_any
from mllm_jax.training.rate_groups import Rates, scale_by_rates

DecayMask = Callable[[Any], Any]
"""From a tree of parameters to the same tree of booleans: which of them weight decay pulls to zero."""


class _OptimizerConfig(Config):
    """What all optimizers share. Gradients are clipped first; the learning rate multiplies what comes out."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Multiplied by the learning rate, as in torch."""
    not_decayed: tuple[str, ...] = (
        "**/class_token",
        "**/registers",
        "**/position_embedding",
        "**/*_scale",
        "**/virtual_tokens/*",
    )
    """Parameters that weight decay leaves alone, besides norms, biases and every other vector."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Gradients longer than this (global norm) are scaled down to it; null never clips."""


class AdamWConfig(_OptimizerConfig):
    """AdamW (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)

    def descent(self, mask: DecayMask, axes: ParameterTree) -> optax.GradientTransformation:
        """From gradients to updates at learning rate 1; `mask` says what is decayed, `axes` name the parameters'."""
        return optax.adamw(
            1.0, b1=self.beta1, b2=self.beta2, eps=self.epsilon, weight_decay=self.weight_decay, mask=mask
        )


class LionConfig(_OptimizerConfig):
    """Lion (Chen et al., https://arxiv.org/abs/2302.06675): half of AdamW's state, at a learning rate 3 to 10 times
    lower."""

    kind: Literal["lion"] = "lion"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)

    def descent(self, mask: DecayMask, axes: ParameterTree) -> optax.GradientTransformation:
        return optax.lion(1.0, b1=self.beta1, b2=self.beta2, weight_decay=self.weight_decay, mask=mask)


class AdafactorConfig(_OptimizerConfig):
    """Adafactor (Shazeer and Stern, https://arxiv.org/abs/1804.04235) with a given learning rate.

    Second moments of a matrix are kept as a row and a column.
    """

    kind: Literal["adafactor"] = "adafactor"
    decay_exponent: float = Field(default=0.8, gt=0, le=1)
    """The second moments' decay after t steps is 1 - t^-this."""
    beta1: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the first moments; null keeps none."""
    relative: bool = False
    """Updates are multiplied by the size (root mean square) of the parameter."""
    smallest_factored: int = Field(default=128, gt=0)
    """Matrices with a shorter side than this keep their second moments whole."""

    def descent(self, mask: DecayMask, axes: ParameterTree) -> optax.GradientTransformation:
        return optax.adafactor(
            None,
            min_dim_size_to_factor=self.smallest_factored,
            decay_rate=self.decay_exponent,
            multiply_by_parameter_scale=self.relative,
            momentum=self.beta1,
            weight_decay_rate=self.weight_decay or None,
            weight_decay_mask=mask,
        )


class MuonConfig(_OptimizerConfig):
    """Muon for the matrices between hidden states (https://arxiv.org/abs/2502.16982), Nesterov AdamW for the rest.

    The momentum of a matrix is made orthogonal and scaled so that its size is AdamW's, and so its learning rate.
    """

    kind: Literal["muon"] = "muon"
    beta: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the momentum."""
    iterations: int = Field(default=5, gt=0)
    """Newton-Schulz iterations."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of AdamW."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Of AdamW."""

    def descent(self, mask: DecayMask, axes: ParameterTree) -> optax.GradientTransformation:
        flat = flatten_dict(axes, sep="/")

        def matrices(parameters: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda keys, _: hidden_matrix(leaf_path(keys), flat[leaf_path(keys)]), parameters
            )

        return muon(
            1.0,
            ns_steps=self.iterations,
            beta=self.beta,
            weight_decay=self.weight_decay,
            weight_decay_mask=mask,
            adam_b1=self.beta1,
            adam_b2=self.beta2,
            adam_weight_decay=self.weight_decay,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,
        )


OptimizerConfig = Annotated[
    AdamWConfig | LionConfig | AdafactorConfig | MuonConfig,
    Field(discriminator="kind"),
]


def make_optimizer(config: OptimizerConfig, rates: Rates, logical_axes: ParameterTree) -> optax.GradientTransformation:
    """The optimizer of a stage.

    Args:
        config: which optimizer, and its settings.
        rates: learning rate of every parameter.
        logical_axes: of all parameters of the model, trainable or not.
    """
    descent = config.descent(decay_mask(logical_axes, config.not_decayed), logical_axes)
    steps = [descent, scale_by_rates(rates)]
    return optax.chain(*steps if config.clip_norm is None else (optax.clip_by_global_norm(config.clip_norm), *steps))


def decay_mask(logical_axes: ParameterTree, not_decayed: tuple[str, ...]) -> DecayMask:
    """Decay for matrices alone: biases, norm scales and other vectors are left out.

    What is a vector is decided by the logical axes and the path, not by the number of dimensions: under scanned
    layers every leaf has a leading layer axis, and an attention bias has an axis of heads.
    """
    decayed = {
        path: _is_matrix(path, axes) and not matches_any(not_decayed, path)
        for path, axes in flatten_dict(logical_axes, sep="/").items()
    }

    def mask(parameters: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda keys, _: decayed[leaf_path(keys)], parameters)

    return mask


def _is_matrix(path: str, axes: tuple[str | None, ...]) -> bool:
    is_bias = path.rsplit("/", 1)[-1] == "bias"
    return not is_bias and len([name for name in axes if name != "layers"]) > 1


def hidden_matrix(path: str, axes: tuple[str | None, ...]) -> MuonDimensionNumbers | None:
    """Which axes of a parameter are the rows and which the columns of a matrix from or to the hidden states.

    Layers and experts are matrices of their own. None: the parameter is no such matrix.
    """
    sides = sides_of(axes) if path.endswith("/kernel") else None
    return None if sides is None else MuonDimensionNumbers(sides.inputs, sides.outputs)
