"""BLIP-2's first stage (https://arxiv.org/abs/2301.12597): a Q-Former learns from pairs of an image and its text.

Three losses of equal rank: which text belongs to which image among all of the global batch (contrastive), whether a
pair belongs together or is a hard negative (matching), and the text itself, token by token, by what the queries read of
the image (captioning). As in LAVIS, equal texts or images in a batch are no less each other's negatives for that. The
decoder is not run.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int
from pydantic import Field, model_validator

from data_pipelines.batch import Batch
from data_pipelines.config_class import Config
from mllm_jax.models.connectors.q_former import QFormerConfig, QFormerTextConfig
from mllm_jax.models.connectors.q_former_heads import PAIR_AXES, PairQFormer
from mllm_jax.models.layers.low_rank import adapted
from mllm_jax.models.parameters import axes_of, unboxed
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.cross_entropy import TokenLoss, weighted_cross_entropy
from mllm_jax.training.objective import Losses, Objective, ObjectiveError, OwnParameters, StageModel
from mllm_jax.training.objectives.pairs import Pairs, PairsConfig, pair_count, pairs_of
from mllm_jax.training.pair_losses import contrastive_loss, hard_negatives, kept_within, mean_over, recalled
from mllm_jax.training.state import merge

SMALLEST_TEMPERATURE = 1e-3
TEXT = "text"
"""The branch of the objective's parameters that is the text side of a Q-Former whose model has none."""
TEMPERATURE = "temperature"


class OwnTextConfig(Config):
    """The text side of a Q-Former that keeps none; its values are BERT's."""

    tokenizer: str
    """A `tokenizer.json`, a folder with one, or a hub id; with tokens before and after a text, as BERT's."""
    vocab_size: int = Field(default=30523, gt=0)
    """Rows of the word embedding: one for every token, and a last one for the token that begins a caption."""
    max_positions: int = Field(default=512, gt=0)
    """Longest text in tokens that has positions."""


class QFormerObjectiveConfig(PairsConfig):
    """Contrastive, matching and captioning losses for a connector of kind `q_former`; its values are BLIP-2's."""

    kind: Literal["q_former"]
    text: OwnTextConfig | None = None
    """The text side, where the connector has none of its own (`model.connector.text`): it is gone after the stage, as
    BLIP-2's is. Null: the connector's, read with `model.instruction_tokenizer`."""
    weights: str | None = None
    """A Hugging Face folder or hub id with a BERT, as which what the objective owns begins: its text side, if it has
    one, and the head that writes captions. Null: random. The connector has `model.connector_weights` for the same."""
    begin_token: int | None = Field(default=None, ge=0)
    """Row of the word embedding that begins a caption to be written; null: the last one."""
    width: int = Field(default=256, gt=0)
    """Of the space in which images and texts are compared."""
    temperature: float = Field(default=0.07, ge=SMALLEST_TEMPERATURE)
    """By which likenesses are divided, at the start; it is learned."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target's probability that goes to all candidates alike, in the contrastive loss and in captions."""
    contrastive_weight: float = Field(default=1.0, ge=0)
    matching_weight: float = Field(default=1.0, ge=0)
    captioning_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "QFormerObjectiveConfig":
        if not (self.contrastive_weight or self.matching_weight or self.captioning_weight):
            raise ValueError("contrastive_weight, matching_weight and captioning_weight are all 0: nothing is learned")
        return self

    def plain(self) -> "QFormerObjectiveConfig":
        """The objective that validation measures: without smoothing."""
        return self.model_copy(update={"label_smoothing": 0.0})


def text_of(config: QFormerObjectiveConfig, connector: Any) -> QFormerTextConfig:
    """The text side that the losses are made with.

    Raises:
        ObjectiveError: there is none or one too many, or it cannot hold the texts.
    """
    if not isinstance(connector, QFormerConfig):
        raise ObjectiveError(
            f"objective.kind: 'q_former' trains a connector of kind 'q_former', but model.connector is of kind "
            f"{connector.kind!r}"
        )
    if (connector.text is None) == (config.text is None):
        found = "neither has one" if config.text is None else "both have one"
        raise ObjectiveError(
            f"objective.text: the text side is the connector's (model.connector.text) or the objective's, but {found}; "
            "give exactly one"
        )
    text = connector.text
    if config.text is not None:
        positions = config.text.max_positions
        text = QFormerTextConfig(
            vocab_size=config.text.vocab_size, max_positions=positions, instruction_tokens=positions
        )
    assert text is not None
    if config.text_tokens > text.max_positions:
        raise ObjectiveError(
            f"objective.text_tokens: found {config.text_tokens}, but the text side has positions for "
            f"{text.max_positions} tokens"
        )
    if begin_token(config, text) >= text.vocab_size:
        raise ObjectiveError(
            f"objective.begin_token: found {config.begin_token}, but the word embedding has {text.vocab_size} rows"
        )
    return text


def with_text(config: QFormerObjectiveConfig, connector: Any) -> QFormerConfig:
    """The connector's Q-Former with the text side that the losses are made with; raises as `text_of`."""
    return connector.model_copy(update={"text": text_of(config, connector)})


def begin_token(config: QFormerObjectiveConfig, text: QFormerTextConfig) -> int:
    """The row of the word embedding that begins a caption."""
    return text.vocab_size - 1 if config.begin_token is None else config.begin_token


def q_former_objective(stage: StageModel, config: QFormerObjectiveConfig) -> Objective:
    """The three losses, summed over the pairs.

    Raises:
        ObjectiveError: the model has no Q-Former of this kind, or no text side for it.
    """
    model: Any = stage.model
    connector = model.config.connector
    text = text_of(config, connector)
    if model.config.tiling is not None:
        raise ObjectiveError("objective.kind: 'q_former' reads images of one slot each; set model.tiling to null")
    module = PairQFormer(with_text(config, connector), config.width, model.dtype, model.param_dtype)

    def losses(parameters: ParameterTree, batch: Batch, key: Array | None) -> Losses:
        pairs = pairs_of(batch, config.text_tokens)
        with adapted(stage.adapters):
            features = nn.apply(_features, model)({"params": parameters}, pairs.images)
            return nn.apply(partial(_losses, config, begin_token(config, text)), module)(
                {"params": _as_module(parameters)}, features, pairs, _temperature(parameters), key
            )

    return Objective(
        losses,
        weight=pair_count,
        own=_own_parameters(module, config, stage.parameters["connector"]),
        reads=lambda path: path.startswith(("encoder/", "connector/")) and not path.startswith("connector/projection/"),
        one_pass=False,
    )


def _features(model: Any, images: Array) -> Float[Array, "M P D"]:
    return model.encoder(images)


def _as_module(parameters: ParameterTree) -> ParameterTree:
    """The parameters as a `PairQFormer` has them."""
    own = parameters["objective"]
    heads = {name: tree for name, tree in own.items() if name not in (TEXT, TEMPERATURE)}
    return {**heads, "connector": merge(parameters["connector"], own.get(TEXT, {}))}


def _temperature(parameters: ParameterTree) -> Float[Array, ""]:
    return kept_within(parameters["objective"][TEMPERATURE], SMALLEST_TEMPERATURE, math.inf)


def _own_parameters(module: PairQFormer, config: QFormerObjectiveConfig, connector: ParameterTree) -> OwnParameters:
    """The heads, the temperature, and whatever of the Q-Former is not the connector's."""
    # As wide as the connector, whatever the encoder is: what reads the image is always the connector's.
    inputs = jnp.zeros((1, 1, module.config.width)), jnp.zeros((1, config.text_tokens), jnp.int32)
    makes = partial(module.init, method="initialise")
    boxed = jax.eval_shape(makes, jax.random.key(0), *inputs)["params"]
    connectors = flatten_dict(connector, sep="/")

    def own(tree: ParameterTree) -> dict[str, Any]:
        leaves = flatten_dict(tree, sep="/")
        text = {path.removeprefix("connector/"): leaf for path, leaf in leaves.items() if path.startswith("connector/")}
        heads = {path: leaf for path, leaf in leaves.items() if not path.startswith("connector/")}
        return heads | {f"{TEXT}/{path}": leaf for path, leaf in text.items() if path not in connectors}

    def initial(parameters: ParameterTree, key: Array) -> Mapping[str, Array]:
        made = own(unboxed(makes(key, *inputs)["params"]))
        return made | {TEMPERATURE: jnp.asarray(config.temperature, jnp.float32)}

    return OwnParameters(
        shapes=own(unboxed(boxed)) | {TEMPERATURE: jax.ShapeDtypeStruct((), jnp.float32)},
        axes=own(axes_of(boxed)) | {TEMPERATURE: ()},
        initial=initial,
    )


def _losses(
    config: QFormerObjectiveConfig,
    begin: int,
    module: PairQFormer,
    features: Float[Array, "M P D"],
    pairs: Pairs,
    temperature: Float[Array, ""],
    key: Array | None,
) -> Losses:
    """All losses, and what else is worth a curve, times the number of pairs: their mean is by pairs."""
    compared, captions = module.compared_and_captioned(features, pairs.text, begin)
    logits = likeness(compared, module.compared_texts(pairs.text)) / temperature
    contrastive = contrastive_loss(logits, pairs.valid, config.label_smoothing)
    captioning = _caption_loss(captions, pairs, config.label_smoothing)
    # Where nothing is left to chance, the negatives are the same ones every time.
    drawn = hard_negatives(jax.random.key(0) if key is None else key, logits, pairs.valid)
    matching, accuracy = _matching(module, features, pairs, drawn.images, drawn.texts)
    means = {
        "contrastive_loss": contrastive,
        "matching_loss": matching,
        "captioning_loss": captioning,
        "matching_accuracy": accuracy,
        "image_to_text_recall": recalled(logits, pairs.valid),
        "text_to_image_recall": recalled(logits.T, pairs.valid),
        "temperature": temperature,
    }
    total = (
        config.contrastive_weight * contrastive
        + config.matching_weight * matching
        + config.captioning_weight * captioning
    )
    count = jnp.sum(pairs.valid, dtype=jnp.float32)
    return Losses(total * count, {name: mean * count for name, mean in means.items()})


def likeness(images: Float[Array, "M Q E"], texts: Float[Array, "N E"]) -> Float[Array, "M N"]:
    """How like every image is to every text: by the query that is likest to it."""
    products = jnp.einsum("mqe,ne->mnq", images, texts, precision=jax.lax.Precision.HIGHEST)
    return jnp.max(nn.with_logical_constraint(products, PAIR_AXES), axis=-1)


def _caption_loss(logits: Float[Array, "M S V"], pairs: Pairs, smoothing: float) -> Float[Array, ""]:
    """The mean over all tokens that follow another one."""
    targets = pairs.text[:, 1:]
    weights = ((targets >= 0) & pairs.valid[:, None]).astype(jnp.float32)
    summed = weighted_cross_entropy(logits[:, :-1], jnp.maximum(targets, 0), weights, TokenLoss(smoothing))
    return summed / jnp.maximum(jnp.sum(weights), 1)


def _matching(
    module: PairQFormer,
    features: Float[Array, "M P D"],
    pairs: Pairs,
    wrong_images: Int[Array, " M"],
    wrong_texts: Int[Array, " M"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Loss and accuracy over every pair, every text with a wrong image and every image with a wrong text."""
    images = jnp.concatenate([features, features[wrong_images], features])
    texts = jnp.concatenate([pairs.text, pairs.text, pairs.text[wrong_texts]])
    logits = module.matched(nn.with_logical_constraint(images, PAIR_AXES), texts)
    own = jnp.arange(len(pairs.text))
    wrong = jnp.concatenate([wrong_images != own, wrong_texts != own])
    belongs = jnp.concatenate([jnp.ones_like(own), jnp.zeros_like(own), jnp.zeros_like(own)])
    counted = jnp.concatenate([pairs.valid, jnp.tile(pairs.valid, 2) & wrong])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), belongs[:, None], axis=1)[:, 0]
    right = (jnp.argmax(logits, axis=1) == belongs).astype(jnp.float32)
    return mean_over(counted, -chosen), mean_over(counted, right)
