"""Which of a tower's features a model takes, in the keys of LLaVA and its relatives."""

from typing import Any

from mllm_jax.interop.families.family import FamilyError, HuggingFaceConfig
from mllm_jax.models.vit import FeatureConfig, ViTConfig


def selected_features(family: str, config: HuggingFaceConfig, tower: ViTConfig, default_layer: int) -> FeatureConfig:
    """From `vision_feature_layer` and `vision_feature_select_strategy`.

    Raises:
        FamilyError: features that ours cannot hand on.
    """
    layer = config.get("vision_feature_layer", default_layer)
    strategy = config.get("vision_feature_select_strategy", "default")
    if not isinstance(layer, int):
        raise FamilyError(f"{family}: vision_feature_layer is {layer!r}, but only a single layer can be imported.")
    if strategy == "default" and not tower.class_token:
        raise FamilyError(
            f"{family}: vision_feature_select_strategy 'default' drops the first token, but this vision tower has no "
            "class token, so that a patch would be lost; only 'full' can be imported."
        )
    if tower.registers:
        raise FamilyError(f"{family}: a vision tower with registers hands them on as if they were patches.")
    return FeatureConfig(layer=layer, keep_class_token=strategy == "full" and tower.class_token)


def their_selection(family: str, encoder: ViTConfig) -> dict[str, Any]:
    """The inverse of `selected_features`."""
    if encoder.features.post_norm:
        raise FamilyError(f"{family} models take features without the final norm: encoder.features.post_norm is true.")
    if encoder.registers:
        raise FamilyError(
            f"{family} models would hand on an encoder's registers as patches; encoder.registers is not 0."
        )
    drops_first_token = encoder.class_token and not encoder.features.keep_class_token
    return {
        "vision_feature_layer": encoder.features.layer,
        "vision_feature_select_strategy": "default" if drops_first_token else "full",
    }
