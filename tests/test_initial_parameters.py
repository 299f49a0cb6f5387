"""What a run starts from: a decoder's folder fills what it knows, and a connector's weights beside it are new."""

import logging
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import SingleDeviceSharding

from mllm_jax.initial_parameters import initial_parameters
from mllm_jax.interop.backbones import architecture_of
from mllm_jax.model_choice import DecoderChoice, EncoderChoice, ModelChoice
from mllm_jax.models.connectors.choice import ConnectorConfig
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.connectors.prefix_adapter import PrefixAdapterConfig
from mllm_jax.models.connectors.visual_expert import VisualExpertConfig, copied_from
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import abstract_parameters
from mllm_jax.models.vit import ViTConfig
from tests.support.hugging_face_folders import write_decoder

TOWER = ViTConfig(image_size=(8, 8), patch_size=4, width=12, layers=1, heads=2, feed_forward_width=12)


@pytest.mark.parametrize(
    "connector",
    [
        GatedCrossAttentionConfig(resampler=None, every=1, heads=2, head_width=4),
        PrefixAdapterConfig(length=3, layers=1, visual=None),
        VisualExpertConfig(),
    ],
    ids=lambda connector: connector.kind,
)
def test_a_decoders_folder_fills_what_it_knows(tmp_path: Path, connector: ConnectorConfig, caplog) -> None:
    theirs = write_decoder(tmp_path)
    decoder = architecture_of(str(tmp_path), DecoderConfig)
    model = MultimodalConfig(encoder=TOWER, connector=connector, decoder=decoder)
    choice = ModelChoice(
        encoder=EncoderChoice(architecture=TOWER.model_dump()),
        connector=connector,
        decoder=DecoderChoice(weights=str(tmp_path), architecture=decoder.model_dump()),
        chat_template="plain",
    )
    here = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: leaf.update(sharding=here), abstract_parameters(model))
    caplog.set_level(logging.INFO, "mllm_jax")
    run = SimpleNamespace(model=choice, seed=0, stages=[SimpleNamespace(trainable=["connector/**"])])
    made = initial_parameters(run, model, abstract)
    assert jax.tree.structure(made) == jax.tree.structure(abstract)

    stored = theirs.model.layers[1].self_attn.q_proj.weight.detach().numpy().T
    query = np.asarray(made["decoder"]["blocks"]["attention"]["query"]["kernel"][1])
    np.testing.assert_array_equal(query.reshape(stored.shape), stored)
    flat = flatten_dict(made)
    for path, leaf in flat.items():
        source = copied_from(path)
        if source is not None:
            assert leaf is not flat[source]
            np.testing.assert_array_equal(leaf, flat[source])
    closed = [path for path in flat if path[-1].endswith(("_gate", "gates"))]
    assert all(not np.asarray(flat[path]).any() for path in closed)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and "no stage trains them: " in warned[0] and "model.encoder.weights" in warned[0]
    sizes = sum(leaf.size for leaf in jax.tree.leaves(made["encoder"]))
    assert f"encoder {sizes:,}" in warned[0]
