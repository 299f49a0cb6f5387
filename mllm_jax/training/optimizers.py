"""Optimizers, as values of a config."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax
from flax.traverse_util import flatten_dict
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.patterns import matches_any

DecayMask = Callable[[Any], Any]
"""From a tree of parameters to the same tree of booleans: which of them weight decay pulls to zero."""


class AdamWConfig(Config):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101), after clipping by the global norm."""

    kind: Literal["adamw"] = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Multiplied by the learning rate, as in torch."""
    not_decayed: tuple[str, ...] = ("**/class_token", "**/registers", "**/position_embedding", "**/*_scale")
    """Parameters that weight decay leaves alone, besides norms, biases and every other vector."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Gradients longer than this (global norm) are scaled down to it; null never clips."""

    def transformation(self, schedule: optax.Schedule, mask: DecayMask) -> optax.GradientTransformation:
        """The optax transformation; `mask` says what is decayed."""
        adamw = optax.adamw(
            schedule, b1=self.beta1, b2=self.beta2, eps=self.epsilon, weight_decay=self.weight_decay, mask=mask
        )
        return adamw if self.clip_norm is None else optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)


OptimizerConfig = AdamWConfig


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


def leaf_path(keys: tuple[Any, ...]) -> str:
    """The slash-joined path of a leaf from JAX's key path."""
    return "/".join(str(key.key) for key in keys)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, logical_axes: ParameterTree
) -> optax.GradientTransformation:
    """The optimizer of a stage.

    Args:
        config: which optimizer, and its settings.
        schedule: learning rate as a function of the number of steps done.
        logical_axes: of all parameters of the model, trainable or not.
    """
    return config.transformation(schedule, decay_mask(logical_axes, config.not_decayed))
