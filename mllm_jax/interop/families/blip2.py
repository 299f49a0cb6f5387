"""BLIP-2 (https://arxiv.org/abs/2301.12597): an EVA-CLIP tower, a Q-Former and a language model."""

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


def blip2(connector: QFormerConfig, decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of BLIP-2 models with this layout of the Q-Former and a decoder of this family."""
    table = (
        EVA.table.below("vision_model.", "encoder/")
        + Table(q_former_rules(connector.cross_attention_every)).below("", "connector/")
        + decoder.table.below("language_model.", "decoder/")
    )

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        return MultimodalConfig(
            encoder=EVA.from_hugging_face(config.get("vision_config", {})).model_copy(update={"features": _FEATURES}),
            connector=_q_former(config),
            decoder=decoder.from_hugging_face(_text_config(config)),
        )

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        if not isinstance(config.connector, QFormerConfig):
            raise FamilyError("BLIP-2 models have a connector of kind 'q_former', but this one has another.")
        require_ours("BLIP-2", tower_of(config), features=_FEATURES)
        return {
            "architectures": ["Blip2ForConditionalGeneration"],
            "model_type": "blip-2",
            "vision_config": EVA.to_hugging_face(tower_of(config)),
            "qformer_config": their_q_former(config.connector, tower_of(config).width),
            "text_config": decoder.to_hugging_face(config.decoder),
            "num_query_tokens": config.connector.queries,
            "tie_word_embeddings": config.decoder.tied_embeddings,
        }

    return MultimodalFamily(
        name=f"blip2({decoder.name})",
        model_types=("blip-2",),
        table=table,
        from_hugging_face=from_hugging_face,
        to_hugging_face=to_hugging_face,
        processor=Processor(image_transform, output_size, _processor_files, expands_images=False),
        image_token_key="image_token_index",
        image_token_default=50265,
    )


def _q_former(config: HuggingFaceConfig) -> QFormerConfig:
    return q_former(config.get("qformer_config", {}), config.get("num_query_tokens", 32))


def _text_config(config: HuggingFaceConfig) -> HuggingFaceConfig:
    return config.get("text_config", {})


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """`Blip2Processor` can put an image's tokens before the text alone, so it is told to leave them to the text."""
    images = processor_config(transform, tower_of(config).pixel_mean, tower_of(config).pixel_std)
    return {
        "preprocessor_config.json": images | {"processor_class": "Blip2Processor"},
        "processor_config.json": {"processor_class": "Blip2Processor", "num_query_tokens": None},
    }


def _of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
    return blip2(_q_former(config), decoder_of_folder(_text_config(config), "opt"))


def _of_config(config: MultimodalConfig) -> MultimodalFamily:
    if not isinstance(config.connector, QFormerConfig):
        raise FamilyError("BLIP-2 models have a connector of kind 'q_former', but this one has another.")
    return blip2(config.connector, part_of_config(config.decoder))


BLIP2 = CompositeFamily(("blip-2",), _of_folder, _of_config)
