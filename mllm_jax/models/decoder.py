"""The decoder language model: LLaMA, Qwen, Gemma, OPT, GPT-2 and their relatives are values of one config."""

import math
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Bool, Float, Float32, Int, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionBlock, GatedCrossAttentionConfig
from mllm_jax.models.connectors.prefix_adapter import PrefixAdapterConfig
from mllm_jax.models.connectors.visual_expert import VisualExpertConfig
from mllm_jax.models.layers.activations import ActivationName
from mllm_jax.models.layers.attention import SelfAttention
from mllm_jax.models.layers.attention_kernels import Choice, Heads, choose_kernel, platform, soft_capped
from mllm_jax.models.layers.cache import KVCache, advance, empty_cache
from mllm_jax.models.layers.experts import Experts, ExpertsConfig
from mllm_jax.models.layers.feed_forward import FEED_FORWARDS, FeedForwardName
from mllm_jax.models.layers.interleaved import Blocks, Interleaving, run_interleaved
from mllm_jax.models.layers.layer_kinds import LayerKind, Rotation, Views, make_views
from mllm_jax.models.layers.masks import prompt_blocks
from mllm_jax.models.layers.materialised import materialised
from mllm_jax.models.layers.media import Media, where_image
from mllm_jax.models.layers.norms import NORMS, NormName
from mllm_jax.models.layers.prefix import Prefixes, PrefixTable
from mllm_jax.models.layers.rotary_scaling import LongRotaryScaling, OptionalRotaryScaling
from mllm_jax.models.layers.stack import StackConfig, run_stack
from mllm_jax.models.layers.virtual_tokens import EMBEDDINGS, KEYS, VALUES, VIRTUAL, KeysAndValues, virtual_count
from mllm_jax.models.layers.vocabulary import PositionEmbedding, TokenEmbedding, TokenOutput, without_padding

HIDDEN_AXES = ("rows", "tokens", "embed_activation")


class DecoderConfig(Config):
    """A causal transformer; the defaults are LLaMA's (https://arxiv.org/abs/2302.13971).

    A pattern of layers (`rotary_layers`, `sliding_layers`) is repeated to the depth of the model.
    """

    vocab_size: int = Field(gt=0)
    """Rows of the token embedding."""
    vocab_used: int | None = Field(default=None, gt=0)
    """Tokens there are; the rows from here on are padding, which is never predicted. null: all rows are tokens."""
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    """Key and value heads; each serves heads / kv_heads query heads."""
    head_width: int = Field(gt=0)
    feed_forward_width: int = Field(gt=0)
    feed_forward: FeedForwardName = "gated"
    experts: ExpertsConfig | None = None
    """Gated feed-forward layers among which a router chooses, in the place of `feed_forward`; null: no mixture."""
    activation: ActivationName = "silu"
    """Of the feed-forward layers."""
    norm: NormName = "rms"
    """`rms_one_plus`: RMSNorm whose parameter is added to one (Gemma)."""
    norm_epsilon: float = Field(default=1e-5, gt=0)
    post_norms: bool = False
    """What attention and feed-forward layers give is normed too, before it is added (Gemma 2)."""
    query_key_norm: bool = False
    """Every query and key head is normed before it is turned (Qwen3)."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Positions turn the heads, or are embeddings added to the tokens'."""
    position_offset: int = Field(default=0, ge=0)
    """Unused rows before position 0 in a table of learned positions (OPT has 2)."""
    max_positions: int = Field(default=2048, gt=0)
    """Longest segment in tokens that the model was made for."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_scaling: OptionalRotaryScaling = None
    rotary_width: int | None = Field(default=None, gt=0)
    """Dimensions of a head that positions turn, from the first; null: all."""
    rotary_sections: tuple[int, int, int] | None = None
    """Pairs of a head's dimensions, from the first, that turn by a token's position in time, in rows and in columns;
    an image's tokens keep its grid (Qwen2-VL). null: all turn by its place in the text."""
    attention: Literal["causal", "prefix"] = "causal"
    """prefix: what stands before an answer, back to the answer before it or the beginning, is seen in both directions;
    answers stay causal (PaliGemma)."""
    rotary_layers: tuple[bool, ...] = Field(default=(True,), min_length=1)
    """Which layers turn their heads by rotary positions."""
    sliding_window: int | None = Field(default=None, gt=0)
    """Tokens that a query sees in layers with a window, itself included; null: no layer has a window."""
    sliding_layers: tuple[bool, ...] = Field(default=(True,), min_length=1)
    """Which layers have the window."""
    sliding_rope_theta: float | None = Field(default=None, gt=0)
    """Base of the rotary frequencies, unscaled, in layers with a window; null: as in the others."""
    score_width: int | None = Field(default=None, gt=0)
    """Attention scores are divided by the root of this; null: head_width."""
    attention_soft_cap: float | None = Field(default=None, gt=0)
    """Attention scores are bent to stay within this; null: no cap."""
    logit_soft_cap: float | None = Field(default=None, gt=0)
    """Logits are bent to stay within this; null: no cap."""
    scaled_embeddings: bool = False
    """Token embeddings are multiplied by the root of the width (Gemma)."""
    tied_embeddings: bool = False
    """The output projection is the token embedding."""
    attention_bias: bool = False
    """Of queries, keys and values."""
    attention_output_bias: bool | None = None
    """null: as attention_bias."""
    feed_forward_bias: bool = False
    stack: StackConfig = StackConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "DecoderConfig":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.positions == "rotary":
            self._check_rotary()
        elif self.rotary_sections is not None:
            raise ValueError("rotary_sections need rotary positions")
        if self.vocab_used is not None and self.vocab_used > self.vocab_size:
            raise ValueError(f"vocab_used {self.vocab_used} exceeds vocab_size {self.vocab_size}")
        return self

    def _check_rotary(self) -> None:
        width = self.head_width if self.rotary_width is None else self.rotary_width
        name = "head_width" if self.rotary_width is None else "rotary_width"
        if width % 2:
            raise ValueError(f"{name} {width} is odd, but rotary positions turn pairs of dimensions")
        if width > self.head_width:
            raise ValueError(f"rotary_width {width} exceeds head_width {self.head_width}")
        if self.rotary_sections is not None:
            if sum(self.rotary_sections) != width // 2 or min(self.rotary_sections) < 0:
                raise ValueError(
                    f"rotary_sections {self.rotary_sections} do not add up to the {width // 2} pairs of {name}"
                )
            if self.rope_scaling is not None and self.rope_scaling.needs_lengths:
                raise ValueError(f"rotary_sections do not go with rope_scaling of kind {self.rope_scaling.kind!r}")
        if isinstance(self.rope_scaling, LongRotaryScaling):
            for field in ("short_factors", "long_factors"):
                count = len(getattr(self.rope_scaling, field))
                if count != width // 2:
                    raise ValueError(f"rope_scaling.{field} has {count} factors, but {name} {width} needs {width // 2}")

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """What each layer sees and how it turns its heads."""
        return tuple(self._layer_kind(layer) for layer in range(self.layers))

    @property
    def position_switch(self) -> int | None:
        """The length from which on all that was read before is turned otherwise, so that no cache can go past it."""
        return self.rope_scaling.original_positions if isinstance(self.rope_scaling, LongRotaryScaling) else None

    def _layer_kind(self, layer: int) -> LayerKind:
        sliding = self.sliding_window is not None and self.sliding_layers[layer % len(self.sliding_layers)]
        width, sections = self.rotary_width or self.head_width, self.rotary_sections
        rotation = Rotation(width, self.rope_theta, self.rope_scaling, sections)
        if sliding and self.sliding_rope_theta is not None:
            rotation = rotation._replace(theta=self.sliding_rope_theta, scaling=None)
        turned = self.positions == "rotary" and self.rotary_layers[layer % len(self.rotary_layers)]
        return LayerKind(self.sliding_window if sliding else None, rotation if turned else None)


def attention_kernel(config: DecoderConfig, dtype: Any, on: str) -> Choice:
    """By what a decoder attends over packed rows on a platform, in a compute format."""
    heads = Heads(config.head_width, dtype, config.attention_soft_cap is not None)
    return choose_kernel(config.stack.attention, heads, on)


def make_cache(config: DecoderConfig, rows: int, length: int, dtype: Any) -> KVCache:
    """An empty cache for `length` tokens in each of `rows` rows."""
    return empty_cache(config.layers, rows, length, config.kv_heads, config.head_width, dtype)


class DecoderBlock(nn.Module):
    config: DecoderConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def norm(self, name: str, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        normed = NORMS[self.config.norm](self.config.norm_epsilon, self.dtype, self.param_dtype, name=name)(hidden)
        return materialised(normed)

    def attention(self) -> SelfAttention:
        config = self.config
        return SelfAttention(
            config.heads,
            config.kv_heads,
            config.head_width,
            config.attention_bias,
            output_bias=config.attention_output_bias,
            scale=None if config.score_width is None else config.score_width**-0.5,
            soft_cap=config.attention_soft_cap,
            head_norm=config.norm if config.query_key_norm else None,
            norm_epsilon=config.norm_epsilon,
            kernel=config.stack.attention,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="attention",
        )

    def feed_forward(self, hidden: Float[Array, "B T D"], views: Views) -> Float[Array, "B T D"]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if config.experts is not None:
            if views.at_image is not None:
                raise ValueError("a visual expert stands beside one feed-forward layer, but this decoder has experts")
            experts = Experts(config.experts, config.activation, name="feed_forward", **formats)
            return experts(hidden, views.segment_ids)
        layer = partial(
            FEED_FORWARDS[config.feed_forward],
            config.feed_forward_width,
            activation=config.activation,
            bias=config.feed_forward_bias,
            **formats,
        )
        processed = layer(name="feed_forward")(hidden)
        if views.at_image is None:
            return processed
        return where_image(views.at_image, layer(name="image_feed_forward")(hidden), processed)

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self, carry: tuple[Float[Array, "B T D"], KVCache | None], layer: Int[Array, ""], views: Views
    ) -> tuple[tuple[Float[Array, "B T D"], KVCache | None], None]:
        hidden, cache = carry
        mask, angles = views.of(layer)
        prefix, normed = views.prefix_of(layer), self.norm("attention_norm", hidden)
        given = mask, angles, cache, layer, prefix, views.at_image, views.virtual_of(layer)
        attended, cache = self.attention()(normed, *given)
        if self.config.post_norms:
            attended = self.norm("attention_post_norm", attended)
        hidden = hidden + attended
        processed = self.feed_forward(self.norm("feed_forward_norm", hidden), views)
        if self.config.post_norms:
            processed = self.norm("feed_forward_post_norm", processed)
        return (nn.with_logical_constraint(hidden + processed, HIDDEN_AXES), cache), None


class Decoder(nn.Module):
    config: DecoderConfig
    added: GatedCrossAttentionConfig | PrefixAdapterConfig | VisualExpertConfig | None = None
    """What a connector puts between the layers or into them, for images."""
    dtype: Any = jnp.float32
    """Compute format."""
    param_dtype: Any = jnp.float32

    def setup(self):
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.token_embedding = TokenEmbedding(config.vocab_size, config.width, **formats)
        if config.positions == "learned":
            self.position_embedding = PositionEmbedding(config.max_positions, config.position_offset, **formats)
        if not config.tied_embeddings:
            self.output = TokenOutput(config.vocab_size, **formats)

    @jaxtyped(typechecker=beartype)
    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        embeddings = self.token_embedding(tokens)
        if self.config.scaled_embeddings:
            embeddings = embeddings * jnp.asarray(math.sqrt(self.config.width), embeddings.dtype)
        return embeddings

    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T *axes"],
        cache: KVCache | None = None,
        media: Media | None = None,
        answer_mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Hidden states after the final norm; `positions` are places, or for `rotary_sections` three numbers a token.

        Without a cache the rows are packed: tokens see the earlier tokens of their own segment. With a cache a row is
        one segment that goes on after what the cache holds; `segment_ids` then only tells tokens from the padding
        (0) at their right end, and the cache returned holds the new tokens too.

        `answer_mask` (as in `Batch`) is what prefix attention asks for; what stands between two answers must then be
        given to a cache at once, because its tokens see one another.

        Virtual tokens among the parameters stand before every segment, and move its positions on; a cache has read
        them where `start_cache` made it.
        """
        virtual = None if cache is not None else self.virtual_tokens()
        ahead = virtual_count(self.variables.get("params", {}))
        return self._read(embeddings, segment_ids, positions + ahead, cache, media, answer_mask, virtual)

    def start_cache(self, rows: int, length: int) -> KVCache:
        """A cache for `length` tokens in each of `rows` rows, in which the virtual tokens are already."""
        virtual = self.virtual_tokens()
        if virtual is None:
            return make_cache(self.config, rows, length, self.dtype)
        return virtual.in_cache(make_cache(self.config, rows, virtual.length + length, self.dtype))

    def virtual_tokens(self) -> KeysAndValues | None:
        """Keys and values of what stands before every segment; None: nothing does."""
        if not self.has_variable("params", VIRTUAL):
            return None
        given: dict[str, Array] = self.get_variable("params", VIRTUAL)
        if KEYS in given:
            return KeysAndValues(given[KEYS], given[VALUES])
        count = given[EMBEDDINGS].shape[0]
        places = jnp.arange(count)[None]
        axes = () if self.config.rotary_sections is None else (len(self.config.rotary_sections),)
        positions = jnp.broadcast_to(places.reshape(1, count, *(1,) * len(axes)), (1, count, *axes))
        empty = make_cache(self.config, 1, count, self.dtype)
        # Also where prompts are seen in both directions, each is a block by itself: no segment can be seen from here.
        read = self._read(given[EMBEDDINGS][None], jnp.ones_like(places), positions, empty, None, places >= 0, None)[1]
        assert read is not None
        return KeysAndValues(read.keys[:, 0], read.values[:, 0])

    @nn.compact
    def _read(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T *axes"],
        cache: KVCache | None,
        media: Media | None,
        answer_mask: Bool[Array, "B T"] | None,
        virtual: KeysAndValues | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if config.positions == "learned":
            embeddings = self.position_embedding(embeddings, positions)
        blocks = self._blocks(segment_ids, answer_mask)
        dense = attention_kernel(config, self.dtype, platform()).kernel == "xla"
        views = make_views(config.layer_kinds, segment_ids, positions, cache, blocks, virtual, dense)
        hidden = nn.with_logical_constraint(embeddings.astype(self.dtype), HIDDEN_AXES)
        hidden, cache = self._layers(hidden, cache, views, media)
        hidden = NORMS[config.norm](config.norm_epsilon, name="final_norm", **formats)(hidden)
        return hidden, None if cache is None else advance(cache, segment_ids)

    def _blocks(
        self, segment_ids: Int[Array, "B T"], answer_mask: Bool[Array, "B T"] | None
    ) -> Int[Array, "B T"] | None:
        if self.config.attention == "causal":
            return None
        if answer_mask is None:
            raise ValueError("prefix attention must be told where the answers stand, but answer_mask is None")
        return prompt_blocks(segment_ids, answer_mask)

    def _layers(
        self, hidden: Float[Array, "B T D"], cache: KVCache | None, views: Views, media: Media | None
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        config, added, formats = self.config, self.added, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        arguments = {"config": config, **formats}
        if added is None:
            return run_stack(self, DecoderBlock, arguments, config.stack, config.layers)((hidden, cache), views)
        if media is None:
            raise ValueError("the decoder has weights for images, but is given none; rows without images have N = 0")
        if isinstance(added, GatedCrossAttentionConfig):
            layers = Blocks(DecoderBlock, arguments, "blocks", (views,))
            readers = Blocks(GatedCrossAttentionBlock, {"config": added, **formats}, "cross_blocks", (media,))
            places = Interleaving(config.layers, added.every, added.first)
            return run_interleaved(self, layers, readers, places, config.stack, (hidden, cache))
        if isinstance(added, PrefixAdapterConfig):
            views = views._replace(prefixes=self._prefixes(added, media))
        else:
            views = views._replace(at_image=media.at_image)
        return run_stack(self, DecoderBlock, arguments, config.stack, config.layers)((hidden, cache), views)

    def _prefixes(self, added: PrefixAdapterConfig, media: Media) -> Prefixes:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        gates = config.heads if added.gate == "head" else 1
        table = PrefixTable(added.layers, added.length, config.width, gates, name="prefix", **formats)
        embeddings, stored = table(config.layers)
        opened = jnp.tanh(stored) if added.gate_activation == "tanh" else stored
        return Prefixes(embeddings, opened, None if added.visual is None else media)

    @jaxtyped(typechecker=beartype)
    def logits(self, hidden: Float[Array, "B T D"]) -> Float32[Array, "B T V"]:
        config = self.config
        logits = self.token_embedding.logits(hidden) if config.tied_embeddings else self.output(hidden)
        if config.logit_soft_cap is not None:
            logits = soft_capped(logits, config.logit_soft_cap)
        return logits if config.vocab_used is None else without_padding(logits, config.vocab_used)

    def initialise(self, media: Media | None = None) -> Float32[Array, "1 1 V"]:
        """Runs every part once, so that `init(key, method="initialise")` makes every parameter."""
        zeros = jnp.zeros((1, 1), jnp.int32)
        return self.logits(self(self.embed(zeros), zeros, zeros, media=media, answer_mask=zeros > 0)[0])
