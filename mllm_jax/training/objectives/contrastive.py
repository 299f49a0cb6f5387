"""Contrastive pre-training of an encoder on pairs of an image and its text: CLIP's loss and SigLIP's.

The run's decoder is the tower that reads the texts. Every other text of the global batch is a wrong one for an image,
and every other image for a text.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float
from pydantic import Field

from data_pipelines.batch import Batch
from mllm_jax.models.connectors.choice import added_weights
from mllm_jax.models.layers.low_rank import adapted
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import axes_of, unboxed
from mllm_jax.models.towers import Pooling, Towers
from mllm_jax.models.vit import ViTConfig
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.objective import Losses, Objective, ObjectiveError, OwnParameters, StageModel
from mllm_jax.training.objectives.pairs import PairsConfig, pair_count, pair_mask
from mllm_jax.training.pair_losses import contrastive_loss, kept_within, recalled, sigmoid_loss

SCALE, BIAS = "scale", "bias"
LARGEST_SCALE = 100.0
TOWERS = ("encoder", "decoder")

Variant = Literal["clip", "siglip"]


class ContrastiveObjectiveConfig(PairsConfig):
    """The encoder and the decoder learn to give an image and its text the same place."""

    kind: Literal["contrastive"]
    variant: Variant
    """clip: find each image's text and each text's image among all; siglip: tell of every image and every text whether
    they belong together."""
    width: int | None = Field(default=None, gt=0)
    """Of the space in which images and texts are compared; null: the encoder's own, without a projection of images, as
    in SigLIP."""
    pooling: Pooling | None = None
    """What stands for an image: its class token (CLIP), the mean of its patches, or what a learned query reads of them
    (attention, SigLIP). Null: the class token, where the encoder has one, else attention."""
    initial_scale: float | None = Field(default=None, gt=0)
    """By which likenesses are multiplied, at the start; it is learned. Null: 1 / 0.07 for clip, 10 for siglip."""
    initial_bias: float = -10.0
    """What is added to them in siglip, at the start; it is learned."""


def make_towers(stage: StageModel, config: ContrastiveObjectiveConfig) -> Towers:
    """The two towers of a model.

    Raises:
        ObjectiveError: its encoder or decoder cannot be one.
    """
    multimodal: Any = stage.model
    model: MultimodalConfig = multimodal.config
    image, text = model.encoder, model.decoder
    if not isinstance(image, ViTConfig):
        raise ObjectiveError("objective.kind: 'contrastive' trains one encoder; leave model.encoder.fused_with empty")
    if model.tiling is not None:
        raise ObjectiveError("objective.kind: 'contrastive' reads images of one slot each; set model.tiling to null")
    pooling: Pooling = config.pooling or ("class_token" if image.class_token else "attention")
    if pooling == "class_token" and not image.class_token:
        raise ObjectiveError("objective.pooling: found 'class_token', but the encoder has none; take 'attention'")
    if added_weights(model.connector) is not None or text.experts is not None or text.rotary_sections is not None:
        raise ObjectiveError(
            "objective.kind: 'contrastive' has texts read by a decoder without experts, rotary_sections or what a "
            f"connector of kind {model.connector.kind!r} may add to it; take a plain one"
        )
    if text.positions == "learned" and config.text_tokens > text.max_positions:
        raise ObjectiveError(
            f"objective.text_tokens: found {config.text_tokens}, but the decoder has positions for "
            f"{text.max_positions} tokens"
        )
    formats = {"dtype": multimodal.dtype, "param_dtype": multimodal.param_dtype}
    return Towers(image, text, pooling, config.width, text_bias=config.variant == "siglip", **formats)


def contrastive_objective(stage: StageModel, config: ContrastiveObjectiveConfig) -> Objective:
    """The loss of a variant, summed over the pairs.

    Raises:
        ObjectiveError: the model has no two towers to compare.
    """
    module = make_towers(stage, config)

    def losses(parameters: ParameterTree, batch: Batch, key: Array | None) -> Losses:
        own = parameters["objective"]
        heads = {name: tree for name, tree in own.items() if name not in (SCALE, BIAS)}
        towers = {name: parameters[name] for name in TOWERS}
        with adapted(stage.adapters):
            cosines = nn.apply(_cosines, module)({"params": {**heads, **towers}}, batch)
        valid = pair_mask(batch).reshape(-1)
        logits = _scale(config, own) * cosines
        if config.variant == "siglip":
            logits = logits + own[BIAS]
        loss = sigmoid_loss(logits, valid) if config.variant == "siglip" else contrastive_loss(logits, valid)
        means = {
            "image_to_text_recall": recalled(logits, valid),
            "text_to_image_recall": recalled(logits.T, valid),
            **{name: _scale(config, own) if name == SCALE else own[name] for name in (SCALE, BIAS) if name in own},
        }
        count = jnp.sum(valid, dtype=jnp.float32)
        return Losses(loss * count, {name: mean * count for name, mean in means.items()})

    return Objective(
        losses,
        weight=pair_count,
        own=_own_parameters(module, config),
        reads=lambda path: path.split("/")[0] in TOWERS and not path.startswith("decoder/output/"),
        one_pass=False,
    )


def _scale(config: ContrastiveObjectiveConfig, own: Mapping[str, Any]) -> Float[Array, ""]:
    """CLIP's is kept from growing without end."""
    top = math.log(LARGEST_SCALE) if config.variant == "clip" else math.inf
    return jnp.exp(kept_within(own[SCALE], -math.inf, top))


def _cosines(module: Towers, batch: Batch) -> Float[Array, "M M"]:
    """Images by texts."""
    images = module.compared_images(batch.images.reshape(-1, *batch.images.shape[2:]))
    arrays = batch.tokens, batch.segment_ids, batch.positions, batch.answer_mask
    texts = module.compared_texts(*arrays, batch.image_mask.shape[1])
    cosines = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    return nn.with_logical_constraint(cosines, ("images", None))


def _own_parameters(module: Towers, config: ContrastiveObjectiveConfig) -> OwnParameters:
    """What is neither of the towers'."""
    makes = partial(module.init, method="initialise")
    boxed = jax.eval_shape(makes, jax.random.key(0))["params"]
    start = config.initial_scale or {"clip": 1 / 0.07, "siglip": 10.0}[config.variant]
    scalars = {SCALE: math.log(start)} | ({BIAS: config.initial_bias} if config.variant == "siglip" else {})

    def heads(tree: ParameterTree) -> dict[str, Any]:
        return flatten_dict({name: branch for name, branch in tree.items() if name not in TOWERS}, sep="/")

    def initial(parameters: ParameterTree, key: Array) -> Mapping[str, Array]:
        made = heads(unboxed(makes(key)["params"]))
        return made | {name: jnp.asarray(value, jnp.float32) for name, value in scalars.items()}

    return OwnParameters(
        shapes=heads(unboxed(boxed)) | {name: jax.ShapeDtypeStruct((), jnp.float32) for name in scalars},
        axes=heads(axes_of(boxed)) | dict.fromkeys(scalars, ()),
        initial=initial,
    )
