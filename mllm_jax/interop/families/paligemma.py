"""PaliGemma 1 and 2 (https://arxiv.org/abs/2407.07726): SigLIP, one linear layer and Gemma with prefix attention."""

from typing import Any

from data_pipelines.transforms.image import ImageTransformConfig, processor_config
from data_pipelines.transforms.templates import PALIGEMMA as TEMPLATE
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor, projector_table, tower_of
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require_ours
from mllm_jax.interop.families.gemma import GEMMA, GEMMA2
from mllm_jax.interop.families.parts import by_model_type
from mllm_jax.interop.families.siglip import SIGLIP
from mllm_jax.interop.processor import image_transform, output_size
from mllm_jax.interop.rules import LINEAR, Rule
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.vit import FeatureConfig

DECODERS = (GEMMA, GEMMA2)

_TOWER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4096,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
"""What transformers takes where a config.json has no vision_config."""

_TEXT_DEFAULTS: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257152,
}
"""What transformers takes where a config.json has no text_config."""

_FEATURES = FeatureConfig(layer=-1, post_norm=True)

CONNECTOR = (
    Rule("linear.weight", "layers_0/kernel", LINEAR),
    Rule("linear.bias", "layers_0/bias"),
)


def paligemma(decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of PaliGemma models with a decoder of this family."""

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        tower = SIGLIP.from_hugging_face(config.get("vision_config") or _TOWER_DEFAULTS)
        text = dict(config.get("text_config") or _TEXT_DEFAULTS)
        # Whether it is there or not, the mask is made of the processor's token types.
        text.pop("use_bidirectional_attention", None)
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
        return MultimodalConfig(
            encoder=tower.model_copy(update={"features": _FEATURES}),
            connector=LinearConfig(),
            decoder=decoder.from_hugging_face(text).model_copy(update={"attention": "prefix"}),
        )

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        require_ours("PaliGemma", tower_of(config), features=_FEATURES)
        if not isinstance(config.connector, LinearConfig) or not config.connector.bias:
            raise FamilyError("PaliGemma models have a connector of kind 'linear' with bias, but this one has another.")
        tower = SIGLIP.to_hugging_face(tower_of(config))
        return {
            "architectures": ["PaliGemmaForConditionalGeneration"],
            "model_type": "paligemma",
            "vision_config": tower | {"projection_dim": config.decoder.width},
            "text_config": decoder.to_hugging_face(_causal(config.decoder)),
            "tie_word_embeddings": config.decoder.tied_embeddings,
            "hidden_size": config.decoder.width,
            "projection_dim": config.decoder.width,
        }

    return MultimodalFamily(
        name=f"paligemma({decoder.name})",
        model_types=("paligemma",),
        table=projector_table(SIGLIP.table, CONNECTOR, decoder.table),
        from_hugging_face=from_hugging_face,
        to_hugging_face=to_hugging_face,
        processor=Processor(image_transform, output_size, _processor_files, template=TEMPLATE),
        image_token_key="image_token_index",
        image_token_default=256000,
    )


def _causal(decoder: DecoderConfig) -> DecoderConfig:
    """The decoder as its own family has it: what reads a prefix in both directions is the whole model."""
    require_ours("PaliGemma", decoder, attention="prefix")
    return decoder.model_copy(update={"attention": "causal"})


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    encoder = tower_of(config)
    images = processor_config(transform, encoder.pixel_mean, encoder.pixel_std)
    return {
        "preprocessor_config.json": images
        | {"processor_class": "PaliGemmaProcessor", "image_seq_length": image_tokens(config)},
        "processor_config.json": {"processor_class": "PaliGemmaProcessor"},
    }


def _of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
    return paligemma(by_model_type(config.get("text_config") or {}, DECODERS, "gemma"))


def _of_config(config: MultimodalConfig) -> MultimodalFamily:
    causal = _causal(config.decoder)
    return paligemma(GEMMA2 if causal.post_norms else GEMMA)


PALIGEMMA = CompositeFamily(("paligemma",), _of_folder, _of_config)
