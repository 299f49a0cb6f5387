"""LLaVA (https://arxiv.org/abs/2310.03744): a vision tower, a two-layer connector and a language model."""

from typing import Any

from data_pipelines.tokenizer import IMAGE_TOKEN
from data_pipelines.transforms.image import ImageTransformConfig, processor_config
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor, projector_table, tower_of
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig
from mllm_jax.interop.families.features import selected_features, their_selection
from mllm_jax.interop.families.parts import decoder_of_folder, encoder_of_folder, part_of_config
from mllm_jax.interop.families.vision import ACTIVATION_NAMES, our_activation
from mllm_jax.interop.processor import image_transform, output_size
from mllm_jax.interop.rules import LINEAR, Rule
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.vit import ViTConfig

TOWERS = ("clip", "siglip", "dinov2", "dinov2_gated")

CONNECTOR = (
    Rule("linear_1.weight", "layers_0/kernel", LINEAR),
    Rule("linear_1.bias", "layers_0/bias"),
    Rule("linear_2.weight", "layers_1/kernel", LINEAR),
    Rule("linear_2.bias", "layers_1/bias"),
)


def llava(encoder: Family[ViTConfig], decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of LLaVA models made of two families.

    Raises:
        FamilyError: a tower that LLaVA models were not tried with.
    """
    if encoder.name not in TOWERS:
        raise FamilyError(f"LLaVA: the tower is of family {encoder.name!r}, but only {', '.join(TOWERS)} are known.")
    table = projector_table(encoder.table, CONNECTOR, decoder.table)

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        tower = encoder.from_hugging_face(config.get("vision_config", {}))
        text = dict(config.get("text_config", {}))
        text["tie_word_embeddings"] = text.get("tie_word_embeddings") or config.get("tie_word_embeddings", False)
        return MultimodalConfig(
            encoder=tower.model_copy(update={"features": selected_features("LLaVA", config, tower, -2)}),
            connector=MLPConfig(
                activation=our_activation(config.get("projector_hidden_act", "gelu")),
                bias=config.get("multimodal_projector_bias", True),
            ),
            decoder=decoder.from_hugging_face(text),
        )

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "vision_config": encoder.to_hugging_face(tower_of(config)),
            "text_config": decoder.to_hugging_face(config.decoder),
            "tie_word_embeddings": config.decoder.tied_embeddings,
            "image_seq_length": image_tokens(config),
            **their_selection("LLaVA", tower_of(config)),
            **_their_connector(config.connector),
        }

    return MultimodalFamily(
        name=f"llava({encoder.name}, {decoder.name})",
        model_types=("llava",),
        table=table,
        from_hugging_face=from_hugging_face,
        to_hugging_face=to_hugging_face,
        processor=Processor(image_transform, output_size, _processor_files),
        image_token_key="image_token_index",
        image_token_default=32000,
    )


def _their_connector(connector: Any) -> dict[str, Any]:
    if not isinstance(connector, MLPConfig) or connector.depth != 2:
        raise FamilyError("LLaVA models have a connector of kind 'mlp' and depth 2, but this one has another.")
    return {
        "projector_hidden_act": ACTIVATION_NAMES[connector.activation],
        "multimodal_projector_bias": connector.bias,
    }


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """`LlavaProcessor` counts an image's tokens from its patches and what the model's strategy does to them."""
    encoder = tower_of(config)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": encoder.patch_size,
        "vision_feature_select_strategy": their_selection("LLaVA", encoder)["vision_feature_select_strategy"],
        "num_additional_image_tokens": int(encoder.class_token),
        "image_token": IMAGE_TOKEN,
    }
    return {
        "preprocessor_config.json": processor_config(transform, encoder.pixel_mean, encoder.pixel_std),
        "processor_config.json": processor,
    }


def _of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
    return llava(
        encoder_of_folder(config.get("vision_config", {}), "clip_vision_model"),
        decoder_of_folder(config.get("text_config", {}), "llama"),
    )


def _of_config(config: MultimodalConfig) -> MultimodalFamily:
    return llava(part_of_config(tower_of(config)), part_of_config(config.decoder))


LLAVA = CompositeFamily(("llava",), _of_folder, _of_config)
