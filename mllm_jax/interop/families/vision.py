"""What the config mappings of all vision families share."""

from collections.abc import Mapping
from typing import Any

from mllm_jax.interop.families.family import FamilyError, HuggingFaceConfig, require_ours
from mllm_jax.models.layers.activations import ActivationName
from mllm_jax.models.vit import ViTConfig

ACTIVATION_NAMES: dict[ActivationName, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
    "linear": "linear",
}
"""Our name of an activation -> transformers' name."""

_OTHER_SPELLINGS: dict[str, ActivationName] = {"gelu_new": "gelu_tanh", "swish": "silu"}


def our_activation(name: str) -> ActivationName:
    """Raises FamilyError for an activation we do not have."""
    known = {theirs: ours for ours, theirs in ACTIVATION_NAMES.items()} | _OTHER_SPELLINGS
    if name not in known:
        raise FamilyError(f"The activation {name!r} is not known; {', '.join(sorted(known))} are.")
    return known[name]


def image_size(config: HuggingFaceConfig) -> tuple[int, int]:
    """Height and width in pixels."""
    size = config["image_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def patch_size(config: HuggingFaceConfig) -> int:
    size = config["patch_size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise FamilyError(f"patch_size is {size!r} in config.json, but only square patches can be imported.")
    return sides.pop()


USUAL: dict[str, Any] = {
    name: ViTConfig.model_fields[name].default
    for name in (
        "class_token",
        "registers",
        "patch_bias",
        "patch_frames",
        "positions",
        "attention_bias",
        "feed_forward",
        "pre_norm",
        "final_norm",
        "layer_scale",
    )
}
"""What a tower has or has not, with the value that most families have."""


def require_tower(family: str, config: ViTConfig, free: tuple[str, ...] = (), **own: Any) -> None:
    """Checks that a tower of ours has what a family's have.

    Args:
        family: its name, for the message.
        config: our tower.
        free: fields that the family can have in more than one way.
        own: fields that it has in another way than most.

    Raises:
        FamilyError: naming the field.
    """
    expected = USUAL | own
    require_ours(family, config, **{field: value for field, value in expected.items() if field not in free})


def shape_of(config: HuggingFaceConfig) -> dict[str, Any]:
    """The fields of a ViTConfig that most families spell alike."""
    return {
        "image_size": image_size(config),
        "patch_size": patch_size(config),
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "activation": our_activation(config["hidden_act"]),
        "norm_epsilon": config["layer_norm_eps"],
    }


def their_shape(config: ViTConfig, image_side: int) -> dict[str, Any]:
    """The inverse of `shape_of`, for a position table of square images of `image_side` pixels."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "image_size": image_side,
        "patch_size": config.patch_size,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "layer_norm_eps": config.norm_epsilon,
    }


def table_side(config: ViTConfig, family: str) -> int:
    """Image size in pixels that a square position table stands for; their models know no other."""
    rows, columns = config.table_grid
    if rows != columns:
        raise FamilyError(
            f"A {family} model in transformers has a square position table, but this one covers {rows}x{columns} "
            "patches. Set encoder.position_grid to a square (the grid of the pretrained table)."
        )
    if config.grid == config.table_grid and config.image_size[0] == config.image_size[1]:
        return config.image_size[0]
    return rows * config.patch_size


def own_side(config: ViTConfig, family: str) -> int:
    """Side of the images in pixels, for families whose models in transformers do not resize their position table."""
    if config.image_size[0] != config.image_size[1] or config.grid != config.table_grid:
        raise FamilyError(
            f"A {family} model in transformers takes square images that fit its position table, but this one takes "
            f"{config.image_size} pixels with a table for {config.table_grid} patches."
        )
    return config.image_size[0]


def pixel_statistics(preprocessor: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """`pixel_mean` and `pixel_std` of a `preprocessor_config.json`, to update a ViTConfig with.

    Raises:
        FamilyError: pixels are scaled by another factor than 1/255.
    """
    if not preprocessor.get("do_normalize", True):
        return {"pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)}
    factor = preprocessor.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-3:
        raise FamilyError(f"rescale_factor is {factor} in preprocessor_config.json, but only 1/255 can be imported.")
    given = {"pixel_mean": preprocessor.get("image_mean"), "pixel_std": preprocessor.get("image_std")}
    return {field: tuple(values) for field, values in given.items() if values is not None}
