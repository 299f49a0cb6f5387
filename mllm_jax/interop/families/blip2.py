"""BLIP-2 (https://arxiv.org/abs/2301.12597): an EVA-CLIP tower, a Q-Former and a language model; and InstructBLIP
(https://arxiv.org/abs/2305.06500), whose Q-Former reads the instruction too."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from data_pipelines.transforms.image import ImageTransformConfig, processor_config
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor, tower_of
from mllm_jax.interop.families.eva import EVA
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require_ours
from mllm_jax.interop.families.parts import decoder_of_folder, part_of_config
from mllm_jax.interop.families.resamplers import q_former, q_former_rules, their_q_former
from mllm_jax.interop.processor import image_transform, output_size
from mllm_jax.interop.rules import Table
from mllm_jax.models.connectors.q_former import QFormerConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.vit import FeatureConfig

_FEATURES = FeatureConfig(layer=-1, keep_class_token=True, post_norm=True)
"""All of the last layer's states, normed."""


@dataclass(frozen=True)
class _Kind:
    """What BLIP-2 and InstructBLIP have each in its own way."""

    name: str
    model_type: str
    classes: str
    """What transformers' classes begin with."""
    tower_type: str
    """`model_type` of the tower's config."""
    reads_text: bool
    processor_queries: int | None
    """`num_query_tokens` with which the processor leaves an image's tokens to the text."""
    instruction_folder: str | None
    image_token: int
    """What stands for an image where config.json does not say."""


_BLIP2 = _Kind("BLIP-2", "blip-2", "Blip2", "blip_2_vision_model", False, None, None, 50265)
_INSTRUCTBLIP = _Kind(
    "InstructBLIP", "instructblip", "InstructBlip", "instructblip_vision_model", True, 0, "qformer_tokenizer", 32000
)


def _family(kind: _Kind, connector: QFormerConfig, decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of models of a kind with this layout of the Q-Former and a decoder of this family."""
    rules = q_former_rules(connector.cross_attention_every, reads_text=kind.reads_text)
    table = (
        EVA.table.below("vision_model.", "encoder/")
        + Table(rules, ignored=(r"qformer\.embeddings\.position_ids",)).below("", "connector/")
        + decoder.table.below("language_model.", "decoder/")
    )

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        return MultimodalConfig(
            encoder=EVA.from_hugging_face(config.get("vision_config", {})).model_copy(update={"features": _FEATURES}),
            connector=_q_former(kind, config),
            decoder=decoder.from_hugging_face(_text_config(kind, config)),
        )

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        connector = _connector_of(kind, config)
        require_ours(kind.name, tower_of(config), features=_FEATURES)
        tower = {"architectures": [f"{kind.classes}VisionModel"], "model_type": kind.tower_type}
        return {
            "architectures": [f"{kind.classes}ForConditionalGeneration"],
            "model_type": kind.model_type,
            "vision_config": EVA.to_hugging_face(tower_of(config)) | tower,
            "qformer_config": their_q_former(connector, tower_of(config).width),
            "text_config": decoder.to_hugging_face(config.decoder),
            "num_query_tokens": connector.queries,
            "tie_word_embeddings": config.decoder.tied_embeddings,
        }

    files = partial(_processor_files, kind)
    return MultimodalFamily(
        name=f"{kind.model_type.replace('-', '')}({decoder.name})",
        model_types=(kind.model_type,),
        table=table,
        from_hugging_face=from_hugging_face,
        to_hugging_face=to_hugging_face,
        processor=Processor(
            image_transform,
            output_size,
            files,
            expands_images=False,
            instruction_folder=kind.instruction_folder,
            # InstructBlipProcessor reads the name as a token object, which it only is where it made the token itself.
            names_image_token=not kind.reads_text,
        ),
        image_token_key="image_token_index",
        image_token_default=kind.image_token,
    )


def _q_former(kind: _Kind, config: HuggingFaceConfig) -> QFormerConfig:
    queries = config.get("num_query_tokens", 32)
    return q_former(config.get("qformer_config", {}), queries, reads_text=kind.reads_text)


def _text_config(kind: _Kind, config: HuggingFaceConfig) -> HuggingFaceConfig:
    text: HuggingFaceConfig = config.get("text_config", {})
    if text.get("is_encoder_decoder") or not config.get("use_decoder_only_language_model", True):
        raise FamilyError(
            f"{kind.name}: the language model's model_type is {text.get('model_type')!r}, which has an encoder of its "
            "own that reads the image; only decoders, such as LLaMA and OPT, can be imported."
        )
    return text


def _connector_of(kind: _Kind, config: MultimodalConfig) -> QFormerConfig:
    connector = config.connector
    if not isinstance(connector, QFormerConfig):
        raise FamilyError(f"{kind.name} models have a connector of kind 'q_former', but this one has another.")
    if kind.reads_text != (connector.text is not None):
        theirs = "reads the instruction" if kind.reads_text else "reads no text"
        raise FamilyError(
            f"{kind.name} models have a Q-Former that {theirs}, but this one's connector.text is {connector.text!r}."
        )
    return connector


def _processor_files(kind: _Kind, config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """Their processors can put an image's tokens before the text alone, so they are told to leave them to the text."""
    images = processor_config(transform, tower_of(config).pixel_mean, tower_of(config).pixel_std)
    processor = {"processor_class": f"{kind.classes}Processor"}
    return {
        "preprocessor_config.json": images | processor,
        "processor_config.json": processor | {"num_query_tokens": kind.processor_queries},
    }


def _composite(kind: _Kind) -> CompositeFamily:
    def of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
        return _family(kind, _q_former(kind, config), decoder_of_folder(_text_config(kind, config), "opt"))

    def of_config(config: MultimodalConfig) -> MultimodalFamily:
        return _family(kind, _connector_of(kind, config), part_of_config(config.decoder))

    return CompositeFamily((kind.model_type,), of_folder, of_config)


BLIP2 = _composite(_BLIP2)
INSTRUCTBLIP = _composite(_INSTRUCTBLIP)
