import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from peft import LoraConfig, get_peft_model

from mllm_jax.models.adapters import linear_maps, with_initial_adapters, without_adapters
from mllm_jax.models.layers.low_rank import DROPOUT, LowRankConfig, adapted
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.parameters import init_parameters, logical_axes, make_model
from tests.support.tiny_training import MODEL, tiny_batch

VARIANTS = {
    "lora": LowRankConfig(targets=("**",), rank=3, alpha=5.0),
    "rank_stabilised": LowRankConfig(targets=("**",), rank=3, alpha=5.0, rank_stabilised=True),
    "decomposed": LowRankConfig(targets=("**",), rank=3, alpha=5.0, decomposed=True),
}
DECODER_MAPS = tuple(f"decoder/blocks/{name}" for name in ("attention/query", "attention/output", "feed_forward/down"))
UNSCANNED = MODEL.model_copy(update={"decoder": MODEL.decoder.model_copy(update={"stack": StackConfig(scan=False)})})


def logits_of(model, parameters, adapters, rngs=None):
    batch = tiny_batch(0, rows=2)
    inputs = (batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index)
    with adapted(adapters):
        return make_model(model).apply({"params": parameters}, *map(jnp.asarray, inputs), rngs=rngs)


def adapted_model(model, config, paths):
    """A model and adapters that are no longer as they began."""
    axes, parameters = logical_axes(model), init_parameters(model, jax.random.key(0))
    adapters = dict.fromkeys(paths, config)
    shardings = {}
    for path in paths:
        for name in ("down", "up", "magnitude")[: 3 if config.decomposed else 2]:
            shardings[f"{path}/adapter/{name}"] = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    begun = with_initial_adapters(adapters, parameters, axes, shardings, seed=1)
    flat = flatten_dict(begun, sep="/")
    random = np.random.default_rng(0)
    for path in sorted(flat):
        if "/adapter/" in path:
            flat[path] = flat[path] + 0.3 * random.standard_normal(flat[path].shape).astype(np.float32)
    return adapters, axes, parameters, begun, unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unscanned"])
def test_adapters_begin_as_the_plain_model_and_merge_into_one(variant, scanned):
    model = MODEL if scanned else UNSCANNED
    paths = DECODER_MAPS if scanned else tuple(path.replace("blocks", "blocks_1") for path in DECODER_MAPS)
    adapters, axes, parameters, begun, trained = adapted_model(model, VARIANTS[variant], (*paths, "connector/layers_0"))
    plain = logits_of(model, parameters, {})
    np.testing.assert_allclose(logits_of(model, begun, adapters), plain, atol=1e-5)
    together = logits_of(model, trained, adapters)
    assert np.abs(together - plain).max() > 0.01
    merged = without_adapters(adapters, trained, axes)
    assert flatten_dict(merged).keys() == flatten_dict(parameters).keys()
    np.testing.assert_allclose(logits_of(model, merged, {}), together, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_are_pefts(variant):
    """One linear map from 6 to 2 x 4 with its bias, outputs and gradients."""
    config = VARIANTS[variant]
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    kernel, bias, inputs = draw(6, 2, 4), draw(2, 4), draw(5, 6)
    down, up, magnitude = draw(6, 3), draw(3, 2, 4), draw(2, 4)
    adapter = {"down": down, "up": up} | ({"magnitude": magnitude} if config.decomposed else {})
    projection = Projection((2, 4), ("embed",), ("heads", "head_width"), bias=True)

    def ours(adapter):
        with adapted({"": config}):
            return projection.apply({"params": {"kernel": kernel, "bias": bias, "adapter": adapter}}, inputs)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 8)

        def forward(self, inputs):
            return self.linear(inputs)

    options = {"use_rslora": config.rank_stabilised, "use_dora": config.decomposed}
    theirs = get_peft_model(Model(), LoraConfig(r=3, lora_alpha=5.0, target_modules=["linear"], **options))
    linear = theirs.base_model.model.linear
    with torch.no_grad():
        linear.base_layer.weight.copy_(torch.from_numpy(kernel.reshape(6, 8).T))
        linear.base_layer.bias.copy_(torch.from_numpy(bias.reshape(8)))
        linear.lora_A["default"].weight.copy_(torch.from_numpy(down.T))
        linear.lora_B["default"].weight.copy_(torch.from_numpy(up.reshape(3, 8).T))
        if config.decomposed:
            linear.lora_magnitude_vector["default"].weight.copy_(torch.from_numpy(magnitude.reshape(8)))
    expected = theirs(torch.from_numpy(inputs))
    np.testing.assert_allclose(ours(adapter).reshape(5, 8), expected.detach().numpy(), atol=1e-5)

    (expected**2).sum().backward()
    gradients = jax.grad(lambda adapter: jnp.sum(ours(adapter) ** 2))(adapter)
    found = {"down": linear.lora_A["default"].weight.grad.T, "up": linear.lora_B["default"].weight.grad.T}
    if config.decomposed:
        found["magnitude"] = linear.lora_magnitude_vector["default"].weight.grad
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient.ravel(), found[name].numpy().ravel(), rtol=1e-4, atol=1e-4)


def test_dropout_leaves_out_inputs_of_the_adapter_alone_and_only_where_random_numbers_are_given():
    config = LowRankConfig(targets=("**",), rank=3, dropout=0.5)
    adapters, _, _, begun, trained = adapted_model(MODEL, config, DECODER_MAPS)
    still = logits_of(MODEL, trained, adapters)
    rngs = [{DROPOUT: jax.random.key(seed)} for seed in (0, 0, 1)]
    first, again, other = (logits_of(MODEL, trained, adapters, each) for each in rngs)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - still).max() > 1e-3
    # An adapter that adds nothing adds nothing either when some of its inputs are left out.
    np.testing.assert_allclose(logits_of(MODEL, begun, adapters, rngs[0]), logits_of(MODEL, begun, {}), atol=1e-5)


def test_adapters_stand_beside_maps_of_hidden_states_alone():
    maps = linear_maps(logical_axes(MODEL))
    assert {"decoder/blocks/attention/query", "connector/layers_1", "encoder/patch_embedding"} <= maps
    assert "decoder/output" not in maps
