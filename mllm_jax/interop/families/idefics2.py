"""Idefics2 (https://arxiv.org/abs/2405.02246): SigLIP, a perceiver as wide as the language model, Mistral.

Images are not split, and are of one size: an image takes one slot.
"""

from collections.abc import Mapping
from typing import Any

from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig
from data_pipelines.transforms.templates import IDEFICS2_IMAGE
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require_ours
from mllm_jax.interop.families.idefics_parts import our_tower, squashing_processor, text_model, their_tower
from mllm_jax.interop.families.parts import decoder_of_folder, part_of_config
from mllm_jax.interop.families.resamplers import (
    IDEFICS2_PERCEIVER_RULES,
    idefics2_perceiver,
    their_idefics2_perceiver,
)
from mllm_jax.interop.families.siglip import SIGLIP
from mllm_jax.interop.families.vision import our_activation
from mllm_jax.interop.processor import output_size, resample_name
from mllm_jax.interop.rules import LINEAR, Rule, Table
from mllm_jax.models.connectors.perceiver import MediaProjectionConfig, PerceiverConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens

_TOWER_DEFAULTS: dict[str, Any] = {"patch_size": 32}
"""What transformers takes for a key that a config.json leaves out, where SigLIP differs."""

_TEXT_DEFAULT: dict[str, Any] = {"model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
"""The language model of a config.json that does not speak of one."""

_PERCEIVER_WIDTH = 4096
"""What transformers takes where `perceiver_config` does not say it."""

_CONNECTOR_RULES = (
    *(
        Rule(f"modality_projection.{name}_proj.weight", f"media_projection/{name}/kernel", LINEAR)
        for name in ("gate", "up", "down")
    ),
    *IDEFICS2_PERCEIVER_RULES,
)


def idefics2(decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of Idefics2 models with a decoder of this family."""
    table = (
        SIGLIP.table.below("model.", "encoder/")
        + Table(_CONNECTOR_RULES).below("model.connector.", "connector/")
        + text_model("Idefics2", decoder).below("", "decoder/")
    )

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        text = {**_text_config(config), "tie_word_embeddings": config.get("tie_word_embeddings", False)}
        language_model = decoder.from_hugging_face(text)
        return MultimodalConfig(
            encoder=our_tower("Idefics2", _TOWER_DEFAULTS | dict(config.get("vision_config") or {})),
            connector=_connector(config.get("perceiver_config") or {}, text, language_model),
            decoder=language_model,
        )

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        connector, text = config.connector, decoder.to_hugging_face(config.decoder)
        if not isinstance(connector, PerceiverConfig):
            raise FamilyError("Idefics2 models have a connector of kind 'perceiver', but this one has another.")
        perceiver = their_idefics2_perceiver(connector, config.decoder.width)
        own = {"stack": connector.stack, "kv_heads": connector.kv_heads}
        require_ours("Idefics2", connector, **dict(_connector(perceiver, text, config.decoder)) | own)
        return {
            "architectures": ["Idefics2ForConditionalGeneration"],
            "model_type": "idefics2",
            "vision_config": their_tower("Idefics2", config, "idefics2_vision"),
            "perceiver_config": perceiver,
            "text_config": text,
            "tie_word_embeddings": config.decoder.tied_embeddings,
        }

    return MultimodalFamily(
        name=f"idefics2({decoder.name})",
        model_types=("idefics2",),
        table=table,
        from_hugging_face=from_hugging_face,
        to_hugging_face=to_hugging_face,
        processor=Processor(
            _image_transform,
            _image_size,
            _processor_files,
            token_names=lambda config: {"image_boundary_token": IDEFICS2_IMAGE.tokens[0]},
            surrounds=lambda config: IDEFICS2_IMAGE,
        ),
        image_token_key="image_token_id",
        image_token_default=32001,
    )


def _text_config(config: HuggingFaceConfig) -> HuggingFaceConfig:
    text = config.get("text_config")
    return _TEXT_DEFAULT if text is None else text


def _connector(perceiver: HuggingFaceConfig, text: HuggingFaceConfig, decoder: DecoderConfig) -> PerceiverConfig:
    """The projection has the inner width and the activation of the language model's feed-forward layers."""
    if perceiver.get("hidden_size", _PERCEIVER_WIDTH) != decoder.width:
        perceiver = {**perceiver, "rms_norm_eps": decoder.norm_epsilon}
    projection = MediaProjectionConfig(
        feed_forward_width=decoder.feed_forward_width, activation=our_activation(text.get("hidden_act", "silu"))
    )
    return idefics2_perceiver(perceiver).model_copy(update={"media_projection": projection})


def _image_transform(preprocessor: Mapping[str, Any]) -> ImageTransformConfig | None:
    """None for a processor that keeps an image's shape or cuts it into several."""
    size, resample = _image_size(preprocessor), resample_name(preprocessor.get("resample", RESAMPLING["bilinear"]))
    if size is None or resample is None or preprocessor.get("do_image_splitting", False):
        return None
    return ImageTransformConfig(size=size, resample=resample)


def _image_size(preprocessor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Two edges of the same length leave an image no other shape than the square."""
    edges = preprocessor.get("size")
    edges = {edges.get("shortest_edge"), edges.get("longest_edge")} if isinstance(edges, Mapping) else set()
    side = edges.pop() if len(edges) == 1 else None
    return output_size(preprocessor) if side is None else (side, side)


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    return {
        "preprocessor_config.json": squashing_processor("Idefics2", config, transform),
        "processor_config.json": {"processor_class": "Idefics2Processor", "image_seq_len": image_tokens(config)},
    }


def _of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
    return idefics2(decoder_of_folder(_text_config(config), "mistral"))


def _of_config(config: MultimodalConfig) -> MultimodalFamily:
    return idefics2(part_of_config(config.decoder))


IDEFICS2 = CompositeFamily(("idefics2",), _of_folder, _of_config)
