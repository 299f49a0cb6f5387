"""A connector's weights as an OpenFlamingo checkpoint: out of a model, and into a run beside two backbones."""

from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from flax.traverse_util import flatten_dict
from jax.sharding import SingleDeviceSharding
from safetensors.torch import load_file

from data_pipelines.tokenizer import tokenizer_from_files
from mllm_jax.assemble import make_ingredients
from mllm_jax.cli import main
from mllm_jax.config import load_run
from mllm_jax.interop.description import ModelDescription
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.imported_folder import write_imported
from mllm_jax.interop.safetensors_folder import WeightsError
from mllm_jax.models.parameters import Parameters, abstract_parameters
from mllm_jax.run_file import RunFileError
from mllm_jax.training.ingredients import Ingredients
from tests.support.hugging_face_folders import tiny_tokenizer, write_decoder, write_tower

RUN = """
output: run
model:
  encoder: {weights: tower, architecture: {features: {layer: -1, post_norm: false}}}
  connector:
    kind: gated_cross_attention
    resampler: {latents: 3, layers: 2, heads: 2, head_width: 6, projection: false}
    every: 2
    first: 1
    heads: 2
    head_width: 6
  decoder: {weights: decoder}
  tokenizer: tokenizer
  chat_template: vicuna_v1
data: {lanes: 2, sources: {pairs: {kind: webdataset, shards: "*.tar"}}}
stages:
  - {name: align, mixture: {pairs: 1}, rows: 4, row_length: 64, images_per_row: 2, steps: 3, trainable: ["**"]}
"""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two backbones, the tokenizer that OpenFlamingo makes of the decoder's, a run file and a model of it."""
    folder = tmp_path_factory.mktemp("run")
    write_tower(folder / "tower", "clip")
    write_decoder(folder / "decoder")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "run.yaml").write_text(RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ingredients = ingredients_of()
        write_model(ingredients, parameters_of(ingredients))
        assert main(["export", "model", "trained", "--connector-only"]) == 0
        yield folder


def ingredients_of(*changes: str) -> Ingredients:
    return make_ingredients(load_run("run.yaml", changes, check_paths=False))


def parameters_of(ingredients: Ingredients) -> Parameters:
    here = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: leaf.update(sharding=here), abstract_parameters(ingredients.model))
    return ingredients.initial_parameters(abstract)


def write_model(ingredients: Ingredients, parameters: Parameters) -> None:
    leaves = ((path, np.asarray(leaf)) for path, leaf in flatten_dict(parameters, sep="/").items())
    tokenizer = tokenizer_from_files(ingredients.tokenizer_files)
    write_imported(Path("model"), ModelDescription.model_validate(ingredients.run["model"]), leaves, tokenizer)


def test_a_run_starts_from_what_was_exported() -> None:
    drawn, other = parameters_of(ingredients_of()), ingredients_of("seed=1", "model.connector_weights=trained")
    found = parameters_of(other)
    assert other.model.decoder.vocab_used == 321 and other.model.decoder.vocab_size == 384
    for path, leaf in flatten_dict(found, sep="/").items():
        used = slice(0, 321) if path == "decoder/token_embedding/embedding" else ...
        used = (slice(None), slice(0, 321)) if path == "decoder/output/kernel" else used
        np.testing.assert_array_equal(leaf[used], flatten_dict(drawn, sep="/")[path][used], err_msg=path)


def test_the_exported_folder_is_what_open_flamingo_reads() -> None:
    """It has as many embeddings as the tokenizer beside it has tokens, and of what is frozen the output alone."""
    stored = load_file("trained/model.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained("trained")
    assert len(tokenizer) == len(stored["lang_encoder.model.embed_tokens.weight"]) == 321
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]}) == 0
    assert not any("decoder_layer" in name or "vision_encoder" in name for name in stored)
    assert stored["lang_encoder.model.layers.1.gated_cross_attn_layer.attn.to_kv.weight"].shape == (24, 24)


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(WeightsError, match="embeddings of 321 tokens, but the tokenizer has 320"):
        ingredients_of("model.connector_weights=trained", "model.tokenizer=decoder")


def test_a_model_that_the_weights_are_not_for_is_refused_before_it_is_made() -> None:
    with pytest.raises(FamilyError, match="OpenFlamingo models have features"):
        ingredients_of("model.connector_weights=trained", "model.encoder.architecture.features.layer=-2")
    with pytest.raises(RunFileError, match=r"model\.connector_weights: there is no folder '/nowhere'"):
        load_run("run.yaml", ["model.connector_weights=/nowhere"])


def test_a_tokenizer_that_would_grow_is_not_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingredients = ingredients_of("model.tokenizer=decoder")
    (folder / "model").rename(folder / "first")
    write_model(ingredients, parameters_of(ingredients))
    assert main(["export", "model", "other", "--connector-only"]) == 1
    assert "no special token <|endofchunk|>" in capsys.readouterr().err
    assert not (folder / "other").exists()
