"""Reads a folder that `transformers` wrote into our parameters, and writes ours back."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from safetensors import safe_open

from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.weights import load, save
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.models.parameters import ModelConfig, Parameters, abstract_parameters
from mllm_jax.models.vit import ViTConfig

TOLERANCE = 2e-5
"""Largest difference, relative to the largest value compared, in float32."""

FEW_SHAPES = settings(
    max_examples=2,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
"""Of a test that compiles models of drawn shapes: the smallest and one more. To shrink a failing one takes minutes."""


def assert_close(ours: Any, theirs: torch.Tensor) -> float:
    """Every number within 1e-4, and within `TOLERANCE` of the largest where small; returns the largest difference."""
    ours, expected = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == expected.shape
    difference, largest = np.abs(ours - expected).max(), np.abs(expected).max()
    assert difference < min(1e-4, TOLERANCE * max(1.0, largest)), f"{difference} among values up to {largest}"
    return float(difference)


def assert_gradients_close(ours: Parameters, expected: Parameters) -> None:
    """Every parameter's gradient within 0.1 % of its largest number.

    A gradient that is zero but for rounding (a key's bias moves all scores of a query alike) is compared with the
    largest of all.
    """
    # NumPy's, for jax would compile a program for every shape.
    found, wanted = jax.device_get((ours, expected))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))

    def compare(found: np.ndarray, wanted: np.ndarray) -> None:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=max(1e-3 * np.abs(wanted).max(), 1e-5 * largest))

    jax.tree.map(compare, found, wanted)


def read_config(folder: Path, scan: bool = True) -> ModelConfig:
    """Our config of a folder, its stacks scanned or not."""
    config = json.loads((folder / "config.json").read_text())
    return with_stack(family_of_folder(config).from_hugging_face(config), StackConfig(scan=scan))


def with_stack(config: ModelConfig, stack: StackConfig) -> ModelConfig:
    if hasattr(config, "stack"):
        return config.model_copy(update={"stack": stack})
    parts = {name: with_stack(getattr(config, name), stack) for name in ("encoder", "decoder")}
    return config.model_copy(update=parts)


def read_parameters(folder: Path, config: ModelConfig) -> Parameters:
    table = family_of_folder(json.loads((folder / "config.json").read_text())).table
    return load(folder, table, abstract_parameters(config)).parameters


def write_folder(folder: Path, config: ModelConfig, parameters: Parameters, **extra: Any) -> None:
    family = family_of_config(config)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(family.to_hugging_face(config) | extra))
    save(folder, family.table, parameters)


def assert_loads_whole(
    model_class: Any, folder: Path, expected: torch.nn.Module, unused: frozenset[str] = frozenset()
) -> None:
    """transformers finds every tensor it wants in `folder` (but for `unused`), no other, and those of `expected`."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    problems = {kind: set(names) - unused for kind, names in report.items() if set(names) - unused}
    assert not problems, problems
    original = expected.state_dict()
    for name, tensor in model.state_dict().items():
        assert name in unused or torch.equal(tensor, original[name]), name


def assert_same_gradients(
    config: MultimodalConfig, folder: Path, model: torch.nn.Module, ours: Any, theirs: Any
) -> None:
    """The loss of the next tokens and every parameter's gradient, through our model and through theirs.

    Args:
        config: of our model.
        folder: where theirs was saved; its weights are overwritten by gradients.
        model: theirs.
        ours: what our model is called with, the tokens first.
        theirs: the same for theirs, by name.
    """
    parameters = read_parameters(folder, config)
    with_gradients(model)

    def loss(parameters: Parameters) -> jax.Array:
        logits = Multimodal(config).apply({"params": parameters}, *ours)
        chosen = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(chosen, ours[0][:, 1:, None], axis=-1).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(parameters)
    logits = model(**theirs).logits
    expected_value = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), theirs["input_ids"][:, 1:].flatten()
    )
    expected_value.backward()
    np.testing.assert_allclose(float(value), expected_value.item(), rtol=1e-5)
    save_gradients(folder, model)
    assert_gradients_close(gradients, read_parameters(folder, config))


def with_gradients(model: torch.nn.Module) -> torch.nn.Module:
    """Makes every parameter have a gradient: torch gives none to the embedding of the padding token."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    return model.requires_grad_(True)


def save_gradients(folder: Path, model: Any) -> None:
    """Writes a model's gradients as if they were its weights, so that a family's table reads them."""
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    model.save_pretrained(folder)


def stored_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return set(file.keys())


def drawn_images(config: ViTConfig, count: int) -> tuple[np.ndarray, torch.Tensor]:
    """Pixels as our encoder takes them, and normalised as `transformers` does."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, *config.image_size, 3), dtype=np.uint8)
    normalised = (pixels / 255.0 - np.array(config.pixel_mean)) / np.array(config.pixel_std)
    return pixels, torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32)


def image_places(config: MultimodalConfig, rows: int) -> np.ndarray:
    """`image_index` of two images a row, at other places in every row."""
    length = image_tokens(config)
    index = np.full((rows, 2 * length + 12), -1, np.int32)
    for row in range(rows):
        for slot in range(2):
            start = 2 + row + slot * (length + 3)
            index[row, start : start + length] = slot * length + np.arange(length)
    return index


def drawn_rows(config: MultimodalConfig, image_token: int) -> tuple[list[jax.Array], dict[str, torch.Tensor]]:
    """Two rows of text with two images each, as our model and as theirs take them."""
    index = image_places(config, rows=2)
    tokens = np.where(index < 0, np.random.default_rng(0).integers(0, image_token, index.shape), image_token)
    pixels, normalised = drawn_images(config.encoder, 4)
    positions = np.broadcast_to(np.arange(index.shape[1]), index.shape)
    images = pixels.reshape(2, 2, *pixels.shape[1:])
    arrays = tokens, np.ones_like(tokens), positions, images, np.ones((2, 2), bool), index
    return [jnp.asarray(array) for array in arrays], {"input_ids": torch.tensor(tokens), "pixel_values": normalised}


def assert_same_logits(config: MultimodalConfig, parameters: Parameters, model: Any, image_token: int) -> float:
    """Two rows of text with two images each, through our model and through theirs; returns the difference."""
    ours, theirs = drawn_rows(config, image_token)
    return assert_close(jax.jit(Multimodal(config).apply)({"params": parameters}, *ours), model(**theirs).logits)
