"""LLaVA (https://arxiv.org/abs/2310.03744): a vision tower, a two-layer connector and a language model."""

from typing import Any

from data_pipelines.tokenizer import IMAGE_TOKEN
from data_pipelines.transforms.image import ImageTransformConfig, processor_config
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig
from mllm_jax.interop.families.parts import decoder_of_folder, encoder_of_folder, part_of_config
from mllm_jax.interop.families.vision import ACTIVATION_NAMES, our_activation
from mllm_jax.interop.processor import image_transform, output_size
from mllm_jax.interop.rules import LINEAR, Rule, Table
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.vit import FeatureConfig, ViTConfig

_TRANSFORMERS_5 = (
    (r"model\.(?=(vision_tower|multi_modal_projector|language_model)\.)", ""),
    (r"language_model\.(?=(layers|embed_tokens|norm)\.)", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
)
"""Names as they are in memory of transformers 5, which files rarely hold, to those that all versions read."""

_CONNECTOR = (
    Rule("multi_modal_projector.linear_1.weight", "connector/layers_0/kernel", LINEAR),
    Rule("multi_modal_projector.linear_1.bias", "connector/layers_0/bias"),
    Rule("multi_modal_projector.linear_2.weight", "connector/layers_1/kernel", LINEAR),
    Rule("multi_modal_projector.linear_2.bias", "connector/layers_1/bias"),
)


def llava(encoder: Family[ViTConfig], decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of LLaVA models made of two families."""
    table = (
        Table((), _TRANSFORMERS_5)
        + encoder.table.below("vision_tower.", "encoder/")
        + Table(_CONNECTOR)
        + decoder.table.below("language_model.", "decoder/")
    )

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        tower = encoder.from_hugging_face(config.get("vision_config", {}))
        text = dict(config.get("text_config", {}))
        text["tie_word_embeddings"] = text.get("tie_word_embeddings") or config.get("tie_word_embeddings", False)
        return MultimodalConfig(
            encoder=tower.model_copy(update={"features": _features(config, tower)}),
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
            "vision_config": encoder.to_hugging_face(config.encoder),
            "text_config": decoder.to_hugging_face(config.decoder),
            "tie_word_embeddings": config.decoder.tied_embeddings,
            "image_seq_length": image_tokens(config),
            **_their_features(config.encoder),
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


def _features(config: HuggingFaceConfig, tower: ViTConfig) -> FeatureConfig:
    layer = config.get("vision_feature_layer", -2)
    strategy = config.get("vision_feature_select_strategy", "default")
    if not isinstance(layer, int):
        raise FamilyError(f"LLaVA: vision_feature_layer is {layer!r}, but only a single layer can be imported.")
    if strategy == "default" and not tower.class_token:
        raise FamilyError(
            "LLaVA: vision_feature_select_strategy 'default' drops the first token, but this vision tower has no "
            "class token, so that a patch would be lost; only 'full' can be imported."
        )
    if tower.registers:
        raise FamilyError("LLaVA: a vision tower with registers hands them on as if they were patches.")
    return FeatureConfig(layer=layer, keep_class_token=strategy == "full" and tower.class_token)


def _their_features(encoder: ViTConfig) -> dict[str, Any]:
    if encoder.features.post_norm:
        raise FamilyError("LLaVA models take features without the final norm: encoder.features.post_norm is true.")
    if encoder.registers:
        raise FamilyError("LLaVA models would hand on an encoder's registers as patches; encoder.registers is not 0.")
    drops_first_token = encoder.class_token and not encoder.features.keep_class_token
    return {
        "vision_feature_layer": encoder.features.layer,
        "vision_feature_select_strategy": "default" if drops_first_token else "full",
    }


def _their_connector(connector: Any) -> dict[str, Any]:
    if not isinstance(connector, MLPConfig) or connector.depth != 2:
        raise FamilyError("LLaVA models have a connector of kind 'mlp' and depth 2, but this one has another.")
    return {
        "projector_hidden_act": ACTIVATION_NAMES[connector.activation],
        "multimodal_projector_bias": connector.bias,
    }


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """`LlavaProcessor` counts an image's tokens from its patches and what the model's strategy does to them."""
    encoder = config.encoder
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": encoder.patch_size,
        "vision_feature_select_strategy": _their_features(encoder)["vision_feature_select_strategy"],
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
    return llava(part_of_config(config.encoder), part_of_config(config.decoder))


LLAVA = CompositeFamily(("llava",), _of_folder, _of_config)
