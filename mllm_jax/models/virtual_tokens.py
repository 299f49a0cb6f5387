"""Virtual tokens in a tree of parameters: what a run file says of them, their shapes and what they begin with."""

import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.choice import added_weights
from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.layers.projection import AxisNames
from mllm_jax.models.layers.virtual_tokens import EMBEDDINGS, KEYS, VALUES, VIRTUAL
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import Parameters

VIRTUAL_PATH = f"decoder/{VIRTUAL}/"
"""Of their parameters."""


class VirtualShape(NamedTuple):
    """One of their parameters."""

    shape: tuple[int, ...]
    axes: AxisNames


class _VirtualTokens(Config):
    count: int = Field(default=20, gt=0)
    """How many stand before every segment."""
    text: str | None = Field(default=None, min_length=1)
    """They begin as the tokens of this text, repeated or cut to their number; null: as random tokens."""


class PromptTuningConfig(_VirtualTokens):
    """Learned embeddings before the tokens of every segment (https://arxiv.org/abs/2104.08691)."""

    kind: Literal["prompt_tuning"]

    def shapes(self, decoder: DecoderConfig) -> dict[str, VirtualShape]:
        """Their parameters in a decoder, by name."""
        return {EMBEDDINGS: VirtualShape((self.count, decoder.width), (None, "embed"))}

    def problem(self, decoder: DecoderConfig) -> str | None:
        """What keeps them from a decoder; None: nothing."""
        scaling = decoder.rope_scaling
        if scaling is None or not scaling.needs_lengths:
            return None
        return (
            f"embeddings before every segment are read once for all of them, but model.decoder.rope_scaling of kind "
            f"{scaling.kind!r} turns them by each segment's length; take kind: prefix_tuning"
        )

    def initial(self, decoder: Decoder, parameters: Parameters, embeddings: Float[Array, "V D"]) -> dict[str, Array]:
        """What they are where they begin as tokens with these embeddings."""
        return {EMBEDDINGS: embeddings}


class PrefixTuningConfig(_VirtualTokens):
    """Learned keys and values before those of every segment in every layer (https://arxiv.org/abs/2101.00190)."""

    kind: Literal["prefix_tuning"]

    def shapes(self, decoder: DecoderConfig) -> dict[str, VirtualShape]:
        """Their parameters in a decoder, by name."""
        described = VirtualShape(
            (decoder.layers, self.count, decoder.kv_heads, decoder.head_width),
            ("layers", None, "kv_heads", "head_width"),
        )
        return {KEYS: described, VALUES: described}

    def problem(self, decoder: DecoderConfig) -> str | None:
        """What keeps them from a decoder; None: nothing."""
        return None

    def initial(self, decoder: Decoder, parameters: Parameters, embeddings: Float[Array, "V D"]) -> dict[str, Array]:
        """What they are where they begin as tokens with these embeddings."""
        given = parameters | {VIRTUAL: {EMBEDDINGS: embeddings}}
        keys, values = decoder.apply({"params": given}, method="virtual_tokens")  # type: ignore[misc]
        return {KEYS: keys, VALUES: values}


VirtualTokensConfig = Annotated[PromptTuningConfig | PrefixTuningConfig, Field(discriminator="kind")]


def virtual_problem(config: VirtualTokensConfig, model: MultimodalConfig) -> str | None:
    """What keeps virtual tokens from a model; None: nothing."""
    if added_weights(model.connector) is not None:
        return (
            f"virtual tokens stand in a plain decoder, but a connector of kind {model.connector.kind!r} puts weights "
            "of its own into it"
        )
    return config.problem(model.decoder)


def virtual_paths(parameters: Parameters) -> frozenset[str]:
    """Paths of the parameters of the virtual tokens, in any tree of a model's."""
    return frozenset(path for path in flatten_dict(parameters, sep="/") if path.startswith(VIRTUAL_PATH))


def with_abstract_virtual_tokens(
    config: VirtualTokensConfig | None, decoder: DecoderConfig, parameters: Parameters, axes: Parameters
) -> tuple[Parameters, Parameters]:
    """Shapes and logical axes of a model's parameters and of its virtual tokens', which are float32; None: none."""
    shapes, names = flatten_dict(parameters, sep="/"), flatten_dict(axes, sep="/")
    for name, described in ({} if config is None else config.shapes(decoder)).items():
        shapes[VIRTUAL_PATH + name] = jax.ShapeDtypeStruct(described.shape, "float32")
        names[VIRTUAL_PATH + name] = described.axes
    return unflatten_dict(shapes, sep="/"), unflatten_dict(names, sep="/")


def with_initial_virtual_tokens(
    config: VirtualTokensConfig,
    model: MultimodalConfig,
    parameters: Parameters,
    tokens: Int[Array, " V"],
    shardings: Mapping[str, Any],
) -> Parameters:
    """The parameters with virtual tokens that are these tokens yet.

    Args:
        config: of the virtual tokens.
        model: whose parameters these are.
        parameters: of the model.
        tokens: ids in its vocabulary.
        shardings: path of a parameter of the virtual tokens -> where it goes.
    """
    decoder = Decoder(model.decoder)

    def make(parameters: Parameters, tokens: Int[Array, " V"]) -> dict[str, Array]:
        embeddings: Any = decoder.apply({"params": parameters}, tokens[None], method="embed")
        made = config.initial(decoder, parameters, embeddings[0])
        return {VIRTUAL_PATH + name: leaf.astype(jnp.float32) for name, leaf in made.items()}

    made = jax.jit(make, out_shardings=dict(shardings))(parameters["decoder"], tokens)
    return unflatten_dict(flatten_dict(parameters, sep="/") | made, sep="/")


def initial_tokens(
    config: VirtualTokensConfig, decoder: DecoderConfig, of_text: tuple[int, ...], seed: int
) -> Int[Array, " V"]:
    """The tokens that virtual ones begin as.

    Args:
        config: of the virtual tokens.
        decoder: from whose vocabulary they are.
        of_text: ids of their text, if they have one.
        seed: of the random numbers.
    """
    if of_text:
        return jnp.resize(jnp.asarray(of_text), (config.count,))
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(VIRTUAL_PATH.encode()))
    return jax.random.randint(key, (config.count,), 0, decoder.vocab_used or decoder.vocab_size)


def without_virtual_tokens(parameters: Parameters) -> Parameters:
    """The parameters of the model alone; as they are, where nothing stands before its segments."""
    decoder = parameters.get("decoder", {})
    if VIRTUAL not in decoder:
        return parameters
    return {**parameters, "decoder": {name: part for name, part in decoder.items() if name != VIRTUAL}}
