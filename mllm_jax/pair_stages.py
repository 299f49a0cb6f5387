"""What stages that learn from pairs of an image and its text take from files: tokenizers of the texts, and weights."""

from collections.abc import Mapping, Sequence

import jax

from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from data_pipelines.transforms.instructions import around
from data_pipelines.transforms.pairs import CaptionEncoder
from mllm_jax.interop.bert_weights import check_bert_folder, load_bert
from mllm_jax.interop.hub import local_folder
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.training.objectives.contrastive import ContrastiveObjectiveConfig
from mllm_jax.training.objectives.q_former import TEXT, QFormerObjectiveConfig, begin_token, text_of, with_text
from mllm_jax.training.stages import StageConfig


def caption_encoders(
    stages: Sequence[StageConfig], model: MultimodalConfig, tokenizer: Tokenizer, connectors: Tokenizer | None
) -> Mapping[str, CaptionEncoder]:
    """By the name of every stage that learns from pairs, what makes tokens of their texts.

    Args:
        stages: of the run.
        model: its architecture.
        tokenizer: of the decoder.
        connectors: of the connector; None: it reads no text.

    Raises:
        ValueError: a tokenizer that cannot be read or does not fit what reads the texts, with the place of the stage.
    """
    found: dict[str, CaptionEncoder] = {}
    for index, stage in enumerate(stages):
        try:
            if isinstance(stage.objective, QFormerObjectiveConfig):
                read_by = _q_former_tokenizer(stage.objective, model, connectors)
                first, last = around(read_by)
            elif isinstance(stage.objective, ContrastiveObjectiveConfig):
                read_by = tokenizer
                first, last = _around_of_decoder(tokenizer)
            else:
                continue
        except (ValueError, OSError) as error:
            raise ValueError(f"stages.{index} ({stage.name}): {error}") from error
        found[stage.name] = CaptionEncoder(read_by, stage.objective.text_tokens, tuple(first), tuple(last))
    return found


def objective_weights(
    model: MultimodalConfig, stage: StageConfig, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> Mapping[str, jax.Array]:
    """What a stage's objective owns and reads from the folder of a BERT.

    Args:
        model: the run's architecture.
        stage: one of the run's.
        abstract: what its objective owns, by paths below `objective/`, with shardings.
    """
    objective = stage.objective
    if not isinstance(objective, QFormerObjectiveConfig) or objective.weights is None:
        return {}
    places = {path.removeprefix(f"{TEXT}/"): path for path in abstract}
    asked = {place: abstract[path] for place, path in places.items()}
    loaded = load_bert(objective.weights, with_text(objective, model.connector), asked)
    return {places[place]: leaf for place, leaf in loaded.items()}


def _around_of_decoder(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """A start token, where the tokenizer begins texts with one, and the end token, which stands for the whole text."""
    if tokenizer.eos_id is None:
        raise ValueError(
            "model.tokenizer: the tokenizer has no end token (eos_token), which stands for a text that is compared "
            "with images; take one that has"
        )
    start = [] if tokenizer.bos_id is None or not tokenizer.starts_with_bos else [tokenizer.bos_id]
    return start, [tokenizer.eos_id]


def _q_former_tokenizer(
    objective: QFormerObjectiveConfig, model: MultimodalConfig, connectors: Tokenizer | None
) -> Tokenizer:
    """The tokenizer of the text side, checked against it."""
    text, own = text_of(objective, model.connector), objective.text
    if objective.weights is not None:
        check_bert_folder(objective.weights, with_text(objective, model.connector), "objective.weights")
    key = "model.instruction_tokenizer" if own is None else "objective.text.tokenizer"
    tokenizer = connectors if own is None else load_tokenizer(local_folder(own.tokenizer), added_tokens=())
    assert tokenizer is not None  # A connector with text has one; the run file is checked for it.
    if not all(around(tokenizer)):
        raise ValueError(
            f"{key}: the tokenizer has no tokens that stand before and after a text (cls_token, sep_token), of which "
            "the first stands for the whole text and the last ends a caption; take one like BERT's"
        )
    begin, tokens = begin_token(objective, text), tokenizer.vocabulary_size
    if tokens > text.vocab_size:
        raise ValueError(f"{key}: it has {tokens} tokens, but the word embedding only {text.vocab_size} rows")
    if begin < tokens and begin != tokenizer.bos_id:
        raise ValueError(
            f"{key}: it has {tokens} tokens, of which one has row {begin} of the {text.vocab_size} rows of the word "
            f"embedding, with which a caption begins; set vocab_size to {tokens + 1} or more, or objective.begin_token"
        )
    return tokenizer
