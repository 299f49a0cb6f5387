"""Idefics (https://arxiv.org/abs/2306.16527): Flamingo with a LLaMA, a CLIP tower and gated cross-attention."""

from typing import Any, Literal

from data_pipelines.transforms.image import ImageTransformConfig, not_exportable
from mllm_jax.interop.families.blocks import CLIP_BLOCKS, block_rules
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor, tower_of
from mllm_jax.interop.families.family import FamilyError, HuggingFaceConfig, require, require_ours
from mllm_jax.interop.families.llama import LLAMA
from mllm_jax.interop.families.resamplers import IDEFICS_PERCEIVER_RULES, idefics_perceiver, their_idefics_perceiver
from mllm_jax.interop.families.vision import own_side, shape_of, their_shape
from mllm_jax.interop.processor import image_transform, output_size
from mllm_jax.interop.rules import CONVOLUTION, LINEAR, LINEAR_FROM_HEADS, SAME, TWO_ROWS, Layout, Rule, Table
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.presets import CLIP_MEAN, CLIP_STD
from mllm_jax.models.vit import FeatureConfig, ViTConfig

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "additional_vocab_size": 0,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "alpha_type": "float",
    "cross_layer_interval": 1,
    "qk_layer_norms": False,
    "use_resampler": False,
}
_TOWER_DEFAULTS: dict[str, Any] = {
    "embed_dim": 768,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
"""What transformers takes for a key that a config.json leaves out."""

_FEATURES = FeatureConfig(layer=-1, keep_class_token=True, post_norm=False)

_GATES: dict[str, Literal["scalar", "vector"]] = {"float": "scalar", "vector": "vector"}

_TOWER_RULES = (
    Rule("vision_model.embeddings.patch_embedding.weight", "patch_embedding/kernel", CONVOLUTION),
    Rule("vision_model.embeddings.class_embedding", "class_token"),
    Rule("vision_model.embeddings.position_embedding.weight", "position_embedding"),
    # The misspelling is theirs.
    Rule("vision_model.pre_layrnorm.weight", "pre_norm/scale"),
    Rule("vision_model.pre_layrnorm.bias", "pre_norm/bias"),
    Rule("vision_model.post_layernorm.weight", "post_norm/scale"),
    Rule("vision_model.post_layernorm.bias", "post_norm/bias"),
    *block_rules(CLIP_BLOCKS),
)


def _table(gate: str) -> Table:
    decoder = LLAMA.table.below("", "decoder/")
    parts = (
        Table(_TOWER_RULES).below("model.", "encoder/"),
        Table(IDEFICS_PERCEIVER_RULES).below("model.", "connector/resampler/"),
        Table(_cross_rules(TWO_ROWS if gate == "vector" else SAME)).below("model.", "decoder/"),
        Table(
            (),
            ignored=(r"model\..*\.rotary_emb\.inv_freq", r"model\.vision_model\.embeddings\.position_ids"),
            continued=(
                ("model.embed_tokens.weight", "model.embed_tokens.additional_embedding.weight"),
                ("lm_head.weight", "lm_head.additional_fc.weight"),
            ),
        ),
    )
    return sum(parts, decoder)


def _cross_rules(gate: Layout) -> tuple[Rule, ...]:
    block = "gated_cross_attn_layers.{layer}."
    rules = [
        Rule(block + "alpha_cross_attn", "cross_blocks/attention_gate", gate),
        Rule(block + "alpha_dense", "cross_blocks/feed_forward_gate", gate),
        Rule(block + "input_layernorm.weight", "cross_blocks/attention_norm/scale"),
        Rule(block + "post_attention_layernorm.weight", "cross_blocks/feed_forward_norm/scale"),
        Rule(block + "cross_attn.q_layer_norm.weight", "cross_blocks/attention/query_norm/scale"),
        Rule(block + "cross_attn.k_layer_norm.weight", "cross_blocks/attention/key_norm/scale"),
        Rule(block + "cross_attn.o_proj.weight", "cross_blocks/attention/output/kernel", LINEAR_FROM_HEADS),
    ]
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        rules.append(Rule(f"{block}cross_attn.{theirs}_proj.weight", f"cross_blocks/attention/{ours}/kernel", LINEAR))
    for name in ("gate", "up", "down"):
        rules.append(Rule(f"{block}mlp.{name}_proj.weight", f"cross_blocks/feed_forward/{name}/kernel", LINEAR))
    return tuple(rules)


def _from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
    config = _DEFAULTS | {key: value for key, value in config.items() if value is not None}
    decoder = LLAMA.from_hugging_face(config)
    return MultimodalConfig(
        encoder=_tower(config.get("vision_config", {})),
        connector=_connector(config, decoder),
        decoder=decoder.model_copy(
            update={"vocab_size": config["vocab_size"] + config["additional_vocab_size"]},
        ),
    )


def _tower(config: HuggingFaceConfig) -> ViTConfig:
    config = _TOWER_DEFAULTS | dict(config)
    require("Idefics", config, num_channels=3)
    return ViTConfig(
        **shape_of({**config, "hidden_size": config["embed_dim"]}),
        feed_forward_width=config["intermediate_size"],
        patch_bias=False,
        pre_norm=True,
        pixel_mean=CLIP_MEAN,
        pixel_std=CLIP_STD,
        features=_FEATURES,
    )


def _connector(config: HuggingFaceConfig, decoder: DecoderConfig) -> GatedCrossAttentionConfig:
    if config["alpha_type"] not in _GATES:
        raise FamilyError(f"Idefics: alpha_type is {config['alpha_type']!r}; {', '.join(_GATES)} can be imported.")
    return GatedCrossAttentionConfig(
        resampler=idefics_perceiver(config.get("perceiver_config") or {}) if config["use_resampler"] else None,
        every=config["cross_layer_interval"],
        heads=decoder.heads,
        head_width=decoder.head_width,
        head_norm="rms" if config["qk_layer_norms"] else None,
        feed_forward="gated",
        feed_forward_width=decoder.feed_forward_width,
        activation="silu",
        norm="rms",
        norm_epsilon=decoder.norm_epsilon,
        gate=_GATES[config["alpha_type"]],
    )


def _to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
    encoder, connector, decoder = tower_of(config), _gated(config), config.decoder
    expected = {
        "class_token": True,
        "patch_frames": 1,
        "registers": 0,
        "patch_bias": False,
        "pre_norm": True,
        "layer_scale": False,
    }
    require_ours("Idefics", encoder, **expected, features=_FEATURES)
    without_bias = {"attention_bias": False, "feed_forward_bias": False}
    require_ours("Idefics", decoder, kv_heads=decoder.heads, head_width=decoder.width // decoder.heads, **without_bias)
    tower = their_shape(encoder, own_side(encoder, "Idefics"))
    theirs = {
        **LLAMA.to_hugging_face(decoder),
        "architectures": ["IdeficsForVisionText2Text"],
        "model_type": "idefics",
        "additional_vocab_size": 0,
        "alpha_type": next(theirs for theirs, ours in _GATES.items() if ours == connector.gate),
        "cross_layer_interval": connector.every,
        "qk_layer_norms": connector.head_norm is not None,
        "use_resampler": connector.resampler is not None,
        "perceiver_config": their_idefics_perceiver(connector.resampler) if connector.resampler else {},
        "vision_config": {
            "model_type": "idefics_vision",
            "embed_dim": tower.pop("hidden_size"),
            "intermediate_size": encoder.feed_forward_width,
            **tower,
        },
    }
    _check_connector(connector, _connector(theirs, decoder), decoder.layers)
    return theirs


def _check_connector(ours: GatedCrossAttentionConfig, read: GatedCrossAttentionConfig, layers: int) -> None:
    """Raises FamilyError where ours is not what their config is read as."""
    stack = {} if ours.resampler is None else {"resampler": _with_stack_of(ours, read)}
    require_ours("Idefics", ours, **dict(read.model_copy(update=stack)))
    if layers % ours.every:
        raise FamilyError(f"Idefics models have layers that connector.every divides, but {ours.every} leaves some.")


def _with_stack_of(ours: GatedCrossAttentionConfig, read: GatedCrossAttentionConfig) -> Any:
    assert ours.resampler is not None and read.resampler is not None
    return read.resampler.model_copy(update={"stack": ours.resampler.stack})


def _gated(config: MultimodalConfig) -> GatedCrossAttentionConfig:
    if not isinstance(config.connector, GatedCrossAttentionConfig):
        raise FamilyError("Idefics models have a connector of kind 'gated_cross_attention', but this one has another.")
    return config.connector


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """`IdeficsProcessor` squashes images to a square by bicubic resampling, and takes no other."""
    encoder = tower_of(config)
    reason = not_exportable(transform, encoder.pixel_mean)
    height, width = transform.size
    if reason is not None or height != width or transform.mode != "squash" or transform.resample != "bicubic":
        raise ValueError(reason or "Idefics models take square images, squashed by bicubic resampling, and no others.")
    images = {
        "image_processor_type": "IdeficsImageProcessor",
        "image_size": height,
        "size": {"height": height, "width": height},
        "image_num_channels": 3,
        "image_mean": list(encoder.pixel_mean),
        "image_std": list(encoder.pixel_std),
    }
    return {
        "preprocessor_config.json": images | {"processor_class": "IdeficsProcessor"},
        "processor_config.json": {"processor_class": "IdeficsProcessor"},
    }


def _image_size(preprocessor: Any) -> tuple[int, int] | None:
    side = preprocessor.get("image_size")
    return output_size(preprocessor) if side is None else (side, side)


def _image_transform(preprocessor: Any) -> ImageTransformConfig | None:
    side = preprocessor.get("image_size")
    return image_transform(preprocessor if side is None else {**preprocessor, "size": {"height": side, "width": side}})


def _family(gate: str) -> MultimodalFamily:
    return MultimodalFamily(
        name="idefics",
        model_types=("idefics",),
        table=_table(gate),
        from_hugging_face=_from_hugging_face,
        to_hugging_face=_to_hugging_face,
        processor=Processor(_image_transform, _image_size, _processor_files),
        image_token_key="image_token_id",
        image_token_default=32001,
    )


def _of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
    return _family(_GATES.get(config.get("alpha_type", "float"), "scalar"))


IDEFICS = CompositeFamily(("idefics",), _of_folder, lambda config: _family(_gated(config).gate))
