"""A model's parameters: their values at the start, their shapes, and the names of their axes."""

from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig
from mllm_jax.models.vit import ViT, ViTConfig

ModelConfig = MultimodalConfig | ViTConfig | DecoderConfig
Parameters = dict[str, Any]
"""A plain nested dict; its leaves are arrays, or whatever stands for them."""

MODELS: dict[type, type[nn.Module]] = {MultimodalConfig: Multimodal, ViTConfig: ViT, DecoderConfig: Decoder}


def make_model(config: ModelConfig, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32) -> nn.Module:
    """The module of a config; `dtype` is the compute format."""
    return MODELS[type(config)](config, dtype=dtype, param_dtype=param_dtype)


def _boxed(config: ModelConfig, param_dtype: Any, key: jax.Array) -> Parameters:
    return make_model(config, param_dtype=param_dtype).init(key, method="initialise")["params"]


@partial(jax.jit, static_argnums=(0, 2))
def init_parameters(config: ModelConfig, key: jax.Array, param_dtype: Any = jnp.float32) -> Parameters:
    """Random parameters. Wrap it in a `jax.jit` with `out_shardings` to make them where they belong."""
    return unboxed(_boxed(config, param_dtype, key))


def abstract_parameters(config: ModelConfig, param_dtype: Any = jnp.float32) -> Parameters:
    """The same tree with a `jax.ShapeDtypeStruct` for every leaf; nothing is computed."""
    return unboxed(_abstract(config, param_dtype))


def logical_axes(config: ModelConfig) -> Parameters:
    """The same tree with a tuple of logical axis names for every leaf, one (or None) an axis."""
    return axes_of(_abstract(config, jnp.float32))


@lru_cache(maxsize=8)
def _abstract(config: ModelConfig, param_dtype: Any) -> Parameters:
    """Shapes and axes; a run asks for them several times, and tracing a whole model takes as long as a small step."""
    return jax.eval_shape(partial(_boxed, config, param_dtype), jax.random.key(0))


def axes_of(boxed: Parameters) -> Parameters:
    """The logical axis names of what a module's `init` makes."""
    return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=_is_box)


def unboxed(tree: Parameters) -> Parameters:
    """The leaves of what a module's `init` makes."""
    # Not nn.unbox: it would put a sharding constraint on names that only a rule table can resolve.
    return jax.tree.map(lambda box: box.value, tree, is_leaf=_is_box)


def _is_box(node: Any) -> bool:
    return isinstance(node, nn.LogicallyPartitioned)
