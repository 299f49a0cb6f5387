"""A run that begins with a whole model: a LLaVA of transformers, a BLIP-2 without the text side that the run's has."""

import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict

from mllm_jax.assemble import make_ingredients
from mllm_jax.config import load_run
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.imported_folder import write_imported
from mllm_jax.interop.model_folder import load_model, read_model_description
from mllm_jax.interop.safetensors_folder import WeightsError
from mllm_jax.models.parameters import Parameters, abstract_parameters, logical_axes
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import parameter_shardings
from mllm_jax.run_file import RunFileError
from mllm_jax.training.ingredients import Ingredients
from tests.support.hugging_face_folders import tiny_tokenizer, write_decoder, write_llava
from tests.support.small_tokenizers import word_pieces, write_bert

RUN = {
    "output": "run",
    "model": {"tokenizer": "theirs", "chat_template": "vicuna_v1"},
    "data": {"lanes": 2, "sources": {"pairs": {"kind": "webdataset", "shards": "*.tar"}}},
    "stages": [
        {
            "name": "align",
            "mixture": {"pairs": 1},
            "rows": 4,
            "row_length": 64,
            "images_per_row": 2,
            "steps": 3,
            "trainable": ["**"],
        }
    ],
}
Q_FORMER = {"kind": "q_former", "queries": 3, "width": 8, "layers": 2, "heads": 2, "feed_forward_width": 12}
TEXT = f"{{vocab_size: {len(word_pieces()) + 1}, max_positions: 16, instruction_tokens: 7}}"


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_llava(Path("theirs"))
        tiny_tokenizer().save_pretrained("theirs")
        write_decoder(Path("decoder"))
        write_bert(Path("bert"))
        model = read_model_description("theirs").model.model_dump(mode="json")
        parts = {part: {"architecture": model[part]} for part in ("encoder", "decoder")}
        whole = RUN["model"] | parts | {"connector": model["connector"], "weights": "theirs"}
        Path("llava.yaml").write_text(yaml.safe_dump(RUN | {"model": whole}))
        queried = whole | {"connector": Q_FORMER, "weights": None}
        Path("blip.yaml").write_text(yaml.safe_dump(RUN | {"model": queried}))
        yield folder


def ingredients_of(run_file: str, *changes: str) -> Ingredients:
    return make_ingredients(load_run(run_file, changes, check_paths=False))


def parameters_of(ingredients: Ingredients, dtype: str = "float32") -> Parameters:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes = abstract_parameters(ingredients.model)
    placed = parameter_shardings(logical_axes(ingredients.model), shapes, mesh)
    abstract = jax.tree.map(lambda leaf, sharding: leaf.update(dtype=dtype, sharding=sharding), shapes, placed)
    return flatten_dict(ingredients.initial_parameters(abstract), sep="/")


def test_a_run_begins_with_all_parameters_of_a_model_in_its_own_formats() -> None:
    expected = flatten_dict(load_model("theirs").parameters, sep="/")
    for dtype in ("float32", "bfloat16"):
        found = parameters_of(ingredients_of("llava.yaml"), dtype)
        assert found.keys() == expected.keys()
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, np.asarray(expected[path]).astype(leaf.dtype), path)


def test_what_a_model_has_no_parameters_for_begins_by_other_keys_and_is_named(caplog) -> None:
    """An InstructBLIP is a BLIP-2 whose Q-Former reads text too."""
    blip2 = ingredients_of("blip.yaml")
    expected = parameters_of(blip2)
    description = read_model_description("theirs").model_copy(update={"model": blip2.model})
    write_imported(Path("blip2"), description, ((path, np.asarray(leaf)) for path, leaf in expected.items()), None)
    text = (f"model.connector.text={TEXT}", "model.instruction_tokenizer=bert", "model.weights=blip2", "seed=1")
    with caplog.at_level(logging.INFO, "mllm_jax"):
        found = parameters_of(ingredients_of("blip.yaml", *text))
    others = {path for path in found if path not in expected}
    assert {path.split("/")[1] for path in others} == {"token_embedding", "position_embedding", "blocks"}
    assert all(path in caplog.text for path in others)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, path)


def test_its_tokenizer_is_the_runs_unless_another_is_named(folder: Path) -> None:
    named = ingredients_of("llava.yaml").tokenizer_files
    assert ingredients_of("llava.yaml", "model.tokenizer=null").tokenizer_files == named
    loaded = load_model("theirs")
    leaves = ((path, np.asarray(leaf)) for path, leaf in flatten_dict(loaded.parameters, sep="/").items())
    write_imported(Path("imported"), loaded.description, leaves, loaded.tokenizer)
    found = ingredients_of("llava.yaml", "model.tokenizer=null", "model.weights=imported")
    assert found.tokenizer_files == named and found.model == ingredients_of("llava.yaml").model
    with pytest.raises(RunFileError, match="name a tokenizer, a whole model or a decoder folder"):
        ingredients_of("llava.yaml", "model.tokenizer=null", "model.weights=null")


@pytest.mark.parametrize(
    ("run_file", "change", "error", "message"),
    [
        ("llava.yaml", "model.decoder.architecture.layers=1", WeightsError, r"decoder/blocks/.*: found \[\d, "),
        ("blip.yaml", "model.weights=theirs", WeightsError, "connector/.*expected no such parameter"),
        ("llava.yaml", "model.weights=decoder", FamilyError, "model.weights: decoder holds a Decoder alone"),
    ],
)
def test_another_model_is_refused_before_anything_is_read(run_file, change, error, message) -> None:
    with pytest.raises(error, match=message):
        ingredients_of(run_file, change)


def test_a_model_that_is_not_there_is_refused_with_its_key() -> None:
    with pytest.raises(RunFileError, match=r"model.weights: there is no folder 'nothing'"):
        load_run("llava.yaml", ["model.weights=nothing"])
