"""Floating-point operations that the model asks for, and what devices can do: the two sides of MFU."""

import math
from collections.abc import Collection
from typing import NamedTuple

import jax
from flax.traverse_util import flatten_dict

from mllm_jax.models.fused import EncoderConfig, encoder_parts
from mllm_jax.models.multimodal import MultimodalConfig, slot_features
from mllm_jax.parallel.rules import ParameterTree

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("TPU v6", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("NVIDIA B200", 2250e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA L4", 121e12),
)
"""Beginning of JAX's `device_kind` -> dense bf16 FLOP/s a device, from the vendors' data sheets; first match counts."""


def peak_flops(device_kind: str) -> float | None:
    """Peak bf16 FLOP/s of one device, or None where it is not known (a CPU)."""
    return next((peak for kind, peak in PEAK_FLOPS if device_kind.startswith(kind)), None)


class StepCost(NamedTuple):
    """FLOPs of one training step as a linear function of what the batch holds; recomputation is not counted."""

    per_token: float
    per_image: float
    """For each image slot that holds an image or a tile of one."""
    per_attended: float
    """For each pair of tokens in the decoder's causal attention."""

    def flops(self, tokens: float, images: float, attended: float) -> float:
        return self.per_token * tokens + self.per_image * images + self.per_attended * attended


def step_cost(
    config: MultimodalConfig,
    parameters: ParameterTree,
    trainable: Collection[str],
    again: Collection[str] = (),
) -> StepCost:
    """The cost of a step: 2 FLOPs a multiply-add of every matrix product in the forward pass, the same again for the
    gradient of its inputs where something before it trains, and for the gradient of its weights where they train.

    Args:
        config: of the model.
        parameters: its parameters, as arrays or shapes.
        trainable: paths of those that train.
        again: parts that are run forward once more.
    """
    parts = step_cost_by_part(config, parameters, trainable, again).values()
    return StepCost(*(sum(costs) for costs in zip(*parts, strict=True)))


def step_cost_by_part(
    config: MultimodalConfig,
    parameters: ParameterTree,
    trainable: Collection[str],
    again: Collection[str] = (),
) -> dict[str, StepCost]:
    """`step_cost` of the vision encoder, the connector, the decoder, and its head (hidden states to logits)."""
    encoder, decoder = config.encoder, config.decoder
    shares = {part: _trained_share(parameters, part, trainable) for part in ("encoder", "connector", "decoder")}
    passes = _passes(shares)
    encoder_products, encoder_attention = _encoder_cost(encoder, parameters["encoder"])
    connector_products = slot_features(config) * _weights(parameters["connector"])
    head = _weights({name: tree for name, tree in parameters["decoder"].items() if name == "output"})
    decoder_products = _weights(parameters["decoder"]) - head
    if decoder.tied_embeddings:
        head += decoder.vocab_size * decoder.width
    if decoder.experts is not None:
        idle = decoder.experts.count - decoder.experts.chosen
        decoder_products -= decoder.layers * idle * 3 * decoder.width * decoder.experts.width
    # Attention has no weights: its backward pass is twice its forward pass, or nothing at all.
    attention_passes = {part: 3.0 if count > 1 else 1.0 for part, count in passes.items()}
    for part in again:
        passes[part] += 1
        attention_passes[part] += 1
    vision = encoder_products * passes["encoder"] + encoder_attention * attention_passes["encoder"]
    attended = 2 * decoder.heads * decoder.head_width * decoder.layers * attention_passes["decoder"]
    return {
        "vision": StepCost(0.0, 2 * vision, 0.0),
        "connector": StepCost(0.0, 2 * connector_products * passes["connector"], 0.0),
        "decoder": StepCost(2 * decoder_products * passes["decoder"], 0.0, 2 * attended),
        "head": StepCost(2 * head * passes["decoder"], 0.0, 0.0),
    }


def _encoder_cost(config: EncoderConfig, parameters: ParameterTree) -> tuple[float, float]:
    """Multiply-adds that one image costs: of products with weights, and of the attention itself."""
    products, attention = 0.0, 0.0
    for path, part in encoder_parts(config).items():
        tokens = part.grid[0] * part.grid[1] + part.prefix_tokens
        weights = parameters
        for key in path:
            weights = weights[key]
        products += tokens * _weights(weights, blocks_used=part.executed_layers / part.layers)
        attention += 2 * tokens**2 * part.width * part.executed_layers
    return products, attention


def _trained_share(parameters: ParameterTree, part: str, trainable: Collection[str]) -> float:
    sizes = {f"{part}/{path}": math.prod(leaf.shape) for path, leaf in flatten_dict(parameters[part], sep="/").items()}
    return sum(size for path, size in sizes.items() if path in trainable) / max(sum(sizes.values()), 1)


def _passes(shares: dict[str, float]) -> dict[str, float]:
    """Forward passes that a part's step is worth; parts are listed from the pixels to the loss."""
    passes: dict[str, float] = {}
    anything_before = False
    for part, share in shares.items():
        anything_before = anything_before or share > 0
        passes[part] = 1 + (1 if anything_before else 0) + share
    return passes


def _weights(tree: ParameterTree, blocks_used: float = 1.0) -> float:
    """Multiply-adds that one token costs: the size of every kernel, of blocks as far as they are executed."""
    total = 0.0
    for path, leaf in flatten_dict(tree, sep="/").items():
        if path.endswith("kernel"):
            total += math.prod(leaf.shape) * (blocks_used if path.startswith("blocks") else 1.0)
    return total


def mesh_peak(devices: Collection[jax.Device]) -> float | None:
    """Peak FLOP/s of all devices together, or None where it is not known."""
    peaks = [peak_flops(device.device_kind) for device in devices]
    return None if None in peaks else float(sum(peak for peak in peaks if peak is not None))
