"""Prompt tuning and prefix tuning through a stage, a crash, loading and answering."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.checkpoint.reading import last_stored_step, read_trained
from mllm_jax.generation.decode import DecodingConfig, generate
from mllm_jax.generation.prompts import Prompt
from mllm_jax.interop.adapter_error import AdapterError
from mllm_jax.interop.description import ModelDescription
from mllm_jax.interop.model_folder import load_model
from mllm_jax.interop.own_export import export_own
from mllm_jax.interop.safetensors_folder import WeightsError
from mllm_jax.interop.whole_model import check_whole_model
from mllm_jax.models.layers.rotary_scaling import DynamicRotaryScaling
from mllm_jax.models.parameters import make_model
from mllm_jax.models.virtual_tokens import VIRTUAL_PATH, virtual_paths
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.plan import StageError, plan_stages
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.stage_run import first_parameters
from mllm_jax.training.stages import StageConfig
from tests.support.run_files import CutShortError, cut_short
from tests.support.small_tokenizers import small_tokenizer
from tests.support.tiny_training import MODEL, tiny_run, tiny_stages

COUNT = 3
PROMPT = {"kind": "prompt_tuning", "count": COUNT, "text": "look closely"}
PREFIX = {"kind": "prefix_tuning", "count": COUNT}
LORA = {"targets": ["decoder/**/attention/query"], "rank": 2}
OF_TEXT = (7, 9)


def stages(adapters: dict[str, Any], **changes: Any) -> tuple[StageConfig, ...]:
    """A stage in which nothing but adapters trains; then one that trains the decoder."""
    align, instruct = tiny_stages(steps=4)
    soft = align.model_dump() | {"name": "soft", "trainable": (), "adapters": adapters} | changes
    return StageConfig.model_validate(soft), instruct


def run_in(folder, mesh=None, model=MODEL):
    run = tiny_run(folder, mesh or make_mesh(MeshConfig(), jax.devices()[:1]), model=model)
    described = {"model": ModelDescription(model=model).model_dump(mode="json")}
    files = small_tokenizer("bpe", folder).files()
    given = replace(run.ingredients, run=described, tokenizer_files=files, token_ids=lambda text: OF_TEXT)
    return replace(run, ingredients=given)


def begun_and_left(run, configs):
    """All parameters as the stage begins, and what it has made of those that train."""
    (stage,) = plan_stages(configs, run)
    begun = flatten_dict(jax.device_get(first_parameters(stage, [], run)), sep="/")
    stored = read_trained(last_stored_step(stage.folder), stage.abstract_parameters())
    return begun, flatten_dict(jax.device_get(stored), sep="/")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = run_in(tmp_path_factory.mktemp("virtual"))
    assert run_stages(stages({"soft": PROMPT})[:1], run) is Outcome.FINISHED
    return run


def test_nothing_but_the_prompt_trains(finished):
    """The loop compares the bits of all others, first step and last."""
    begun, left = begun_and_left(finished, stages({"soft": PROMPT})[:1])
    table = begun["decoder/token_embedding/embedding"]
    np.testing.assert_array_equal(begun[f"{VIRTUAL_PATH}embeddings"], table[[*OF_TEXT, OF_TEXT[0]]])
    assert left.keys() == {f"{VIRTUAL_PATH}embeddings"}
    assert np.abs(left[f"{VIRTUAL_PATH}embeddings"] - begun[f"{VIRTUAL_PATH}embeddings"]).max(axis=1).min() > 1e-3


def test_a_crashed_stage_ends_with_the_same_bits(finished, tmp_path):
    run = run_in(tmp_path)
    configs = stages({"soft": PROMPT})[:1]
    with pytest.raises(CutShortError):
        run_stages(configs, replace(run, ingredients=cut_short(run.ingredients, "soft", 3)))
    assert run_stages(configs, run) is Outcome.FINISHED
    for path, leaf in begun_and_left(finished, configs)[1].items():
        np.testing.assert_array_equal(leaf, begun_and_left(run, configs)[1][path], err_msg=path)


def test_a_mesh_changes_nothing(finished, tmp_path):
    sharded = run_in(tmp_path, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    (stage,) = plan_stages(stages({"soft": PREFIX})[:1], sharded)
    placed = {path: tuple(leaf.sharding.spec) for path, leaf in flatten_dict(stage.abstract.trainable, sep="/").items()}
    assert placed == dict.fromkeys((f"{VIRTUAL_PATH}keys", f"{VIRTUAL_PATH}values"), (None, None, "tensor", None))
    configs = stages({"soft": PROMPT})[:1]
    assert run_stages(configs, sharded) is Outcome.FINISHED
    expected = begun_and_left(finished, configs)[1]
    for path, leaf in begun_and_left(sharded, configs)[1].items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-4, err_msg=path)


def test_prefixes_and_low_rank_adapters_train_together(tmp_path):
    run, configs = run_in(tmp_path), stages({"soft": PREFIX, "low": LORA})[:1]
    assert run_stages(configs, run) is Outcome.FINISHED
    begun, left = begun_and_left(run, configs)
    assert {path.rpartition("/")[2] for path in left} == {"keys", "values", "down", "up"}
    for name in ("keys", "values"):
        changed = np.abs(left[VIRTUAL_PATH + name] - begun[VIRTUAL_PATH + name])
        assert changed.max(axis=(0, 2, 3)).min() > 1e-3


def test_a_loaded_model_answers_with_its_prompt(finished):
    loaded = load_model(finished.folder)
    assert virtual_paths(loaded.parameters) == {f"{VIRTUAL_PATH}embeddings"}
    model = make_model(MODEL)
    prompts = [Prompt(np.asarray(tokens, np.int32), (), ()) for tokens in ([4, 5, 6, 7, 8], [9, 3])]
    answers = generate(model, loaded.parameters, prompts, [], DecodingConfig(max_new_tokens=5, rows=2))
    length = 16
    whole = [[*prompt.tokens, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    tokens = jnp.asarray([row + [0] * (length - len(row)) for row in whole])
    segment_ids = jnp.asarray([[1] * len(row) + [0] * (length - len(row)) for row in whole])
    positions, unseen = jnp.broadcast_to(jnp.arange(length), tokens.shape), jnp.full(tokens.shape, -1)
    images, mask = jnp.zeros((2, 0, 8, 8, 3), jnp.uint8), jnp.zeros((2, 0), bool)
    rows = tokens, segment_ids, positions, images, mask, unseen
    best = np.asarray(jax.jit(model.apply)({"params": loaded.parameters}, *rows).argmax(axis=-1))
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = len(prompt.tokens) - 1
        assert answer == best[row, start : start + 5].tolist()
    too_long = Prompt(np.ones(MODEL.decoder.max_positions - COUNT, np.int32), (), ())
    with pytest.raises(ValueError, match=r"64 tokens \(with 3 virtual ones\), and 1 more"):
        generate(model, loaded.parameters, [too_long], [], DecodingConfig(max_new_tokens=1))


def test_no_plain_weights_hold_it(finished, tmp_path):
    loaded = load_model(finished.folder)
    with pytest.raises(AdapterError, match=r"virtual tokens .* cannot be merged into weights. Export with --adapter"):
        export_own(loaded, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    with pytest.raises(WeightsError, match=r"model\.weights: the last stage of .* learned virtual tokens"):
        check_whole_model(str(finished.folder), MODEL)


LEARNED = {"positions": "learned", "max_positions": 18}
DYNAMIC = {"rope_scaling": DynamicRotaryScaling(factor=2.0, original_positions=8)}


@pytest.mark.parametrize(
    ("adapters", "decoder", "message"),
    [
        ({"soft": PROMPT}, LEARNED, r"row_length: found 16, expected at most 15, .* less the 3 virtual tokens"),
        ({"soft": PROMPT}, DYNAMIC, r"adapters\.soft: .*rope_scaling of kind 'dynamic'.* take kind: prefix_tuning"),
        (
            {"soft": PREFIX},
            {},
            r"stages\.1 \(instruct\): adapters: stage 'soft' leaves .* \(adapters\.soft\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(adapters, decoder, message, tmp_path):
    model = MODEL.model_copy(update={"decoder": MODEL.decoder.model_copy(update=decoder)})
    with pytest.raises(StageError, match=message):
        plan_stages(stages(adapters), run_in(tmp_path, model=model))


def test_a_model_has_the_virtual_tokens_of_one_adapter():
    with pytest.raises(ValueError, match="adapters: a and b are virtual tokens both"):
        stages({"a": PROMPT, "b": PREFIX})
