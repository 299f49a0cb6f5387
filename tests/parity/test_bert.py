"""A Q-Former that begins as a BERT: texts become what they become in BERT, and queries read by BERT's blocks too."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.interop.bert_weights import check_bert_folder, load_bert
from mllm_jax.interop.connector_weights import check_connector_weights, load_connector
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.safetensors_folder import WeightsError
from mllm_jax.models.connectors.q_former import QFormerTextConfig, open_mask
from mllm_jax.models.connectors.q_former_heads import PairQFormer
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import abstract_parameters
from mllm_jax.pair_stages import objective_weights
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.objectives.q_former import OwnTextConfig, QFormerObjectiveConfig
from mllm_jax.training.plan import plan_stages
from mllm_jax.training.stage_run import first_parameters
from mllm_jax.training.stages import StageConfig
from tests.support.hugging_face_folders import randomise
from tests.support.pairs import LENGTH, q_former_model
from tests.support.parity import assert_close
from tests.support.tiny_training import tiny_run, tiny_stages

WORDS, ROWS = 23, 24
"""Words of BERT, and rows of the Q-Former's embedding."""
TEXT = QFormerTextConfig(vocab_size=ROWS, max_positions=9, instruction_tokens=LENGTH)


def write_bert(folder: Path, **changes: Any) -> transformers.BertForMaskedLM:
    config = {
        "vocab_size": WORDS,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 9,
    }
    model = randomise(transformers.BertForMaskedLM(transformers.BertConfig(**config | changes)))
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.zero_()  # Which a Q-Former has not.
    model.save_pretrained(folder)
    return model


def named(tree: Any) -> dict[str, Any]:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {path: leaf.update(sharding=place) for path, leaf in flatten_dict(tree, sep="/").items()}


def whole(config: MultimodalConfig) -> dict[str, Any]:
    """Shapes of the parameters of a Q-Former with text and its heads, in one flat tree."""
    module = PairQFormer(config.connector, 8)
    inputs = jnp.zeros((1, 1, 16)), jnp.zeros((1, 2), jnp.int32)
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, method="initialise")["params"])
    shapes = named(jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda node: hasattr(node, "names")))
    return {path.removeprefix("connector/"): leaf for path, leaf in shapes.items()}


@pytest.mark.parametrize("scan", [True, False])
def test_a_text_alone_becomes_what_bert_makes_of_it(scan: bool, tmp_path: Path) -> None:
    model = write_bert(tmp_path)
    config = q_former_model(TEXT, scan=scan)
    loaded = load_bert(str(tmp_path), config.connector, whole(config))
    there = [[True] * 3 + [False] * 3, [True] * 6]
    text = np.where(there, np.random.default_rng(0).integers(0, WORDS, (2, LENGTH)), -1)
    mask = torch.tensor(there).long()
    heads = {path: leaf for path, leaf in loaded.items() if path.startswith("caption")}
    blocks = {path: leaf for path, leaf in loaded.items() if path not in heads} | {"queries": jnp.zeros((4, 16))}
    parameters = unflatten_dict(heads | {f"connector/{path}": leaf for path, leaf in blocks.items()}, sep="/")
    ours = nn.apply(_states_and_logits, PairQFormer(config.connector, 8))({"params": parameters}, jnp.asarray(text))
    theirs = model(torch.tensor(np.maximum(text, 0)), attention_mask=mask, output_hidden_states=True)
    for found, expected in zip(ours, (theirs.hidden_states[-1], theirs.logits), strict=True):
        assert_close(np.asarray(found)[np.array(there)][:, : expected.shape[-1]], expected[mask.bool()])
    for path, leaf in blocks.items():
        if "/feed_forward" in path:
            np.testing.assert_array_equal(leaf, blocks[path.replace("/feed_forward", "/text_feed_forward")])
    added = loaded["token_embedding/embedding"]
    np.testing.assert_allclose(added[-1], added[:-1].mean(axis=0), atol=1e-6)


def _states_and_logits(module: PairQFormer, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden = module.connector(None, text, open_mask(0, text))
    return hidden, module.connector.text_logits(module.caption_head(hidden)) + module.caption_bias


def test_a_stage_begins_with_the_text_side_of_bert(tmp_path: Path) -> None:
    """Its own text side and caption head are BERT's; what BERT has not is drawn."""
    write_bert(tmp_path / "bert")
    config = q_former_model()
    objective = QFormerObjectiveConfig(
        kind="q_former",
        text=OwnTextConfig(tokenizer="", vocab_size=ROWS, max_positions=9),
        text_tokens=LENGTH,
        weights=str(tmp_path / "bert"),
    )
    values = tiny_stages()[0].model_dump() | {"objective": objective.model_dump()}
    run = tiny_run(tmp_path / "run", make_mesh(MeshConfig(), jax.devices()[:1]), model=config)
    run = replace(run, ingredients=replace(run.ingredients, objective_weights=partial(objective_weights, config)))
    (stage,) = plan_stages([StageConfig.model_validate(values)], run)
    own = flatten_dict(first_parameters(stage, [], run)["objective"], sep="/")
    with_text = q_former_model(TEXT)
    expected = load_bert(str(tmp_path / "bert"), with_text.connector, whole(with_text))
    read = {path for path in own if path.removeprefix("text/") in expected}
    assert {"text/token_embedding/embedding", "caption_bias", "caption_head/dense/kernel"} <= read
    assert set(own) - read == {"temperature"} | {
        f"{head}/{name}" for head in ("image_projection", "text_projection", "matching") for name in ("kernel", "bias")
    }
    for path in read:
        np.testing.assert_array_equal(own[path], expected[path.removeprefix("text/")])


def test_a_connector_begins_as_bert_but_for_what_reads_the_image(tmp_path: Path) -> None:
    write_bert(tmp_path)
    for config in (q_former_model(), q_former_model(TEXT)):
        check_connector_weights(str(tmp_path), config, tokens=0)
        abstract = unflatten_dict(named(abstract_parameters(config)), sep="/")
        found = flatten_dict(load_connector(str(tmp_path), config, abstract).parameters, sep="/")
        left = {path for path in flatten_dict(abstract["connector"], sep="/") if f"connector/{path}" not in found}
        assert {path for path in left if "cross_attention" not in path} == {
            "queries",
            "projection/kernel",
            "projection/bias",
        }
        expected = load_bert(str(tmp_path), q_former_model(TEXT).connector, whole(q_former_model(TEXT)))
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, expected[path.removeprefix("connector/")])
        assert load_connector(str(tmp_path), config, {"decoder": abstract["decoder"]}).parameters == {}


def test_berts_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_bert(tmp_path / "wide", hidden_size=20, vocab_size=30)
    config = q_former_model(TEXT).connector
    expected = r"objective.weights: .* found hidden_size 20, expected 16; vocab_size 30, expected at most 24"
    with pytest.raises(FamilyError, match=expected):
        check_bert_folder(str(tmp_path / "wide"), config, "objective.weights")
    write_bert(tmp_path / "deep", num_hidden_layers=5)
    with pytest.raises(FamilyError, match="found num_hidden_layers 5, expected 4"):
        check_bert_folder(str(tmp_path / "deep"), config, "objective.weights")
    with pytest.raises(WeightsError, match=r"unexpected bert\.encoder\.layer\.4"):
        load_bert(str(tmp_path / "deep"), config, whole(q_former_model(TEXT)))
