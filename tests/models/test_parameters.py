"""Every parameter has a value, a shape and a name for each of its axes, at every size."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.models.layers.axes import PARAMETER_AXES
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.parameters import ModelConfig, abstract_parameters, init_parameters, logical_axes
from mllm_jax.models.presets import DECODERS, ENCODERS

LLAVA_7B = MultimodalConfig(encoder=ENCODERS["clip_vit_l14_336"], decoder=DECODERS["vicuna_7b"])


def count(config: ModelConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(config)))


def test_llava_7b_has_its_published_size_and_axes() -> None:
    shapes, axes = flatten_dict(abstract_parameters(LLAVA_7B)), flatten_dict(logical_axes(LLAVA_7B))
    assert shapes.keys() == axes.keys()
    for path, names in axes.items():
        assert len(names) == len(shapes[path].shape), path
        assert set(names) <= {*PARAMETER_AXES, None}, path
        used = [name for name in names if name is not None]
        assert len(used) == len(set(used)), path
    assert image_tokens(LLAVA_7B) == 576
    # transformers counts 7,063,427,072 in llava-1.5-7b with a vocabulary of 32,064.
    assert count(LLAVA_7B) == 7_063_427_072 - 2 * 64 * 4096


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("smollm2_135m", 134_515_008), ("llama2_7b", 6_738_415_616), ("llama3_8b", 8_030_261_248)],
)
def test_decoders_have_their_published_sizes(preset: str, parameters: int) -> None:
    assert count(DECODERS[preset]) == parameters


@pytest.mark.parametrize(
    ("preset", "parameters"),
    # The mask token of DINOv2 (384) and the pooling head of SigLIP are no parameters of ours.
    [("clip_vit_l14_336", 303_507_456), ("dinov2_small", 22_056_576 - 384), ("clip_vit_b32", 87_456_000)],
)
def test_encoders_have_their_published_sizes(preset: str, parameters: int) -> None:
    assert count(ENCODERS[preset]) == parameters


@pytest.mark.parametrize("scan", [True, False])
def test_initial_parameters_have_the_announced_shapes(scan: bool) -> None:
    config = DECODERS["tiny_llama"].model_copy(update={"layers": 2, "stack": StackConfig(scan=scan)})
    parameters = init_parameters(config, jax.random.key(0))
    abstract = abstract_parameters(config)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), parameters) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), abstract
    )
    blocks = parameters["blocks"] if scan else parameters["blocks_0"]
    kernel = np.asarray(blocks["feed_forward"]["down"]["kernel"])
    np.testing.assert_allclose(kernel.std(), 0.88 / np.sqrt(config.feed_forward_width), rtol=0.05)
