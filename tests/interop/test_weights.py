"""Reading and writing weights: everything accounted for, nothing held that need not be, faults named at once."""

import json
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as torch_file

from mllm_jax.interop import weights
from mllm_jax.interop.adjustments import decoder_adjustments
from mllm_jax.interop.description import ModelDescription
from mllm_jax.interop.families.llama import TABLE
from mllm_jax.interop.families.siglip import TABLE as SIGLIP_TABLE
from mllm_jax.interop.imported_folder import write_imported
from mllm_jax.interop.safetensors_folder import SafetensorsFolder, WeightsError
from mllm_jax.interop.weights import load, save
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.parameters import abstract_parameters
from mllm_jax.models.vit import ViTConfig
from tests.support.parameters import drawn_parameters

CONFIG = DecoderConfig(vocab_size=24, width=16, layers=3, heads=4, kv_heads=2, head_width=4, feed_forward_width=20)
ABSTRACT = abstract_parameters(CONFIG)


@pytest.fixture
def parameters() -> dict:
    return drawn_parameters(CONFIG)


@pytest.fixture
def folder(tmp_path: Path, parameters: dict) -> Path:
    save(tmp_path / "model", TABLE, parameters)
    return tmp_path / "model"


def assert_equal(first: dict, second: dict) -> None:
    assert flatten_dict(first).keys() == flatten_dict(second).keys()
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), first, second))


def change(folder: Path, **tensors: np.ndarray | None) -> None:
    """Replaces tensors of a single-file folder; None removes one. Double underscores stand for dots."""
    stored = load_file(folder / "model.safetensors")
    stored |= {name.replace("__", "."): tensor for name, tensor in tensors.items() if tensor is not None}
    removed = {name.replace("__", ".") for name, tensor in tensors.items() if tensor is None}
    save_file({name: stored[name] for name in stored if name not in removed}, folder / "model.safetensors")


def test_what_is_written_is_read_back(folder: Path, parameters: dict) -> None:
    assert_equal(load(folder, TABLE, ABSTRACT).parameters, parameters)


def test_shards_carry_an_index_and_hold_no_more_than_asked(tmp_path: Path, parameters: dict) -> None:
    save(tmp_path, TABLE, parameters, shard_bytes=4000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and files == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        stored = load_file(tmp_path / file)
        assert sum(array.nbytes for array in stored.values()) <= 4000 or len(stored) == 1
        assert {name for name, where in index["weight_map"].items() if where == file} == set(stored)
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(parameters))
    assert_equal(load(tmp_path, TABLE, ABSTRACT).parameters, parameters)


def test_one_parameter_is_in_memory_at_a_time(folder: Path, parameters: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    read, place = weights.SafetensorsFolder.read, weights._place

    def recording_read(self: weights.SafetensorsFolder, name: str) -> np.ndarray:
        events.append(name)
        return read(self, name)

    def recording_place(array: np.ndarray, sharding: object) -> jax.Array:
        events.append(array.shape)
        return place(array, sharding)

    monkeypatch.setattr(weights.SafetensorsFolder, "read", recording_read)
    monkeypatch.setattr(weights, "_place", recording_place)
    load(folder, TABLE, ABSTRACT)
    runs = [list(names) for names in "".join("." if isinstance(e, tuple) else "r" for e in events).split(".")]
    assert max(map(len, runs)) == CONFIG.layers


class Alive:
    """Counts how many of the arrays that went by are still held."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def passing(self, arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for array in arrays:
            self._seen.append(weakref.ref(array))
            self.most = max(self.most, sum(seen() is not None for seen in self._seen))
            yield array


@pytest.mark.parametrize("shard_bytes", [4000, 2 * 1024**3])
def test_one_tensor_is_held_while_weights_are_written(
    tmp_path: Path, parameters: dict, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the file is that they go to; a second is there while it takes the place of the first."""
    alive, arrays = Alive(), weights._arrays
    monkeypatch.setattr(weights, "_arrays", lambda *given: alive.passing(arrays(*given)))
    save(tmp_path, TABLE, jax.tree.map(np.asarray, parameters), jnp.bfloat16, shard_bytes)
    assert 1 <= alive.most <= 2


def test_one_parameter_is_held_while_a_folder_is_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = Alive()
    with SafetensorsFolder(folder) as source:
        arrays = weights.Reading(source, TABLE, ABSTRACT).arrays()
        paths: list[str] = []

        def unnamed() -> Iterator[np.ndarray]:
            for path, array in arrays:
                paths.append(path)
                yield array
                del array

        named = ((paths[-1], array) for array in alive.passing(unnamed()))
        write_imported(tmp_path / "imported", ModelDescription(model=CONFIG), named, None)
    assert len(paths) == len(flatten_dict(ABSTRACT)) and alive.most <= 2


def test_formats_side_by_side_are_written_as_they_are(tmp_path: Path, parameters: dict) -> None:
    """An odd number of narrow numbers before wide ones must not shift them to an odd place."""
    odd = CONFIG.model_copy(update={"vocab_size": 25, "width": 15})
    mixed = drawn_parameters(odd)
    mixed["token_embedding"]["embedding"] = mixed["token_embedding"]["embedding"].astype(jnp.bfloat16)
    save(tmp_path, TABLE, mixed)
    stored = torch_file(tmp_path / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.bfloat16", "torch.float32"}
    formats = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), mixed)
    assert_equal(load(tmp_path, TABLE, formats).parameters, mixed)


def test_formats_follow_the_abstract_parameters(tmp_path: Path, parameters: dict) -> None:
    save(tmp_path, TABLE, parameters, dtype=jnp.bfloat16)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters)
    assert_equal(load(tmp_path, TABLE, abstract_parameters(CONFIG, jnp.bfloat16)).parameters, rounded)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    assert_equal(load(tmp_path, TABLE, ABSTRACT).parameters, widened)


def test_parameters_go_where_their_shardings_say(folder: Path, parameters: dict) -> None:
    mesh = jax.make_mesh((8,), ("fsdp",))

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = ["fsdp" if size % 8 == 0 else None for size in leaf.shape]
        first = axes.index("fsdp") if "fsdp" in axes else len(axes)
        return NamedSharding(mesh, PartitionSpec(*(axis if i == first else None for i, axis in enumerate(axes))))

    shardings = jax.tree.map(sharding, ABSTRACT)
    loaded = load(folder, TABLE, ABSTRACT, shardings).parameters
    assert_equal(loaded, parameters)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings
    embedding = loaded["token_embedding"]["embedding"]
    assert embedding.addressable_shards[0].data.shape == (3, 16)


def test_scanned_and_unscanned_models_share_their_files(folder: Path, parameters: dict, tmp_path: Path) -> None:
    unscanned = CONFIG.model_copy(update={"stack": StackConfig(scan=False)})
    loaded = load(folder, TABLE, abstract_parameters(unscanned)).parameters
    assert {"blocks_0", "blocks_1", "blocks_2"} < loaded.keys()
    save(tmp_path / "again", TABLE, loaded)
    assert_equal(load(tmp_path / "again", TABLE, ABSTRACT).parameters, parameters)


def test_every_fault_is_named_in_one_error(folder: Path) -> None:
    change(
        folder,
        model__norm__weight=None,
        model__layers__1__mlp__up_proj__weight=np.zeros((20, 15), np.float32),
        model__layers__3__mlp__up_proj__weight=np.zeros((20, 16), np.float32),
        model__layers__0__mlp__gate_proj__weight=np.zeros((20, 16), np.int8),
        model__layers__0__self_attn__rotary_emb__inv_freq=np.zeros(2, np.float32),
    )
    with pytest.raises(WeightsError) as caught:
        load(folder, TABLE, ABSTRACT)
    message = str(caught.value)
    assert "(4 problems)" in message
    assert "missing model.norm.weight, shape [16] (for final_norm/scale)" in message
    assert (
        "misshaped model.layers.1.mlp.up_proj.weight in model.safetensors: found [20, 15], expected [20, 16]" in message
    )
    assert "unexpected model.layers.3.mlp.up_proj.weight in model.safetensors, shape [20, 16]" in message
    assert "model.layers.0.mlp.gate_proj.weight in model.safetensors holds I8 numbers, expected one of F64" in message


def test_a_parameter_without_a_rule_is_an_error_both_ways(tmp_path: Path, folder: Path, parameters: dict) -> None:
    with pytest.raises(WeightsError, match="no rule of the family gives our parameter extra/kernel"):
        load(folder, TABLE, ABSTRACT | {"extra": {"kernel": jax.ShapeDtypeStruct((2,), jnp.float32)}})
    with pytest.raises(WeightsError, match="no name for these parameters: extra/kernel"):
        save(tmp_path / "other", TABLE, parameters | {"extra": {"kernel": jnp.zeros(2)}})


def test_the_pooling_head_of_siglip_is_accounted_for_by_name(tmp_path: Path) -> None:
    config = ViTConfig(
        image_size=(8, 8), patch_size=4, width=8, layers=1, heads=2, feed_forward_width=12, class_token=False
    )
    parameters = drawn_parameters(config)
    save(tmp_path, SIGLIP_TABLE, parameters)
    change(tmp_path, vision_model__head__probe=np.zeros((1, 1, 8), np.float32))
    loaded = load(tmp_path, SIGLIP_TABLE, abstract_parameters(config))
    assert loaded.ignored == ("vision_model.head.probe",)
    change(tmp_path, vision_model__head__other=np.zeros((1, 1, 8), np.float32))
    with pytest.raises(WeightsError, match=r"unexpected vision_model\.head\.other"):
        load(tmp_path, SIGLIP_TABLE, abstract_parameters(config))


def test_one_tensor_under_two_names_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    siglip = {"vision_model.post_layernorm.bias": np.zeros(8), "post_layernorm.bias": np.zeros(8)}
    save_file(tensors | siglip, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="two names of one tensor"):
        load(folder, SIGLIP_TABLE, ABSTRACT)


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_grows_by_the_mean_row(tmp_path: Path, tied: bool) -> None:
    config = CONFIG.model_copy(update={"tied_embeddings": tied})
    parameters = drawn_parameters(config)
    save(tmp_path, TABLE, parameters)
    larger = config.model_copy(update={"vocab_size": 32})
    abstract = abstract_parameters(larger)
    with pytest.raises(WeightsError, match=r"found \[24, 16\], expected \[32, 16\]"):
        load(tmp_path, TABLE, abstract)
    loaded = load(tmp_path, TABLE, abstract, adjustments=decoder_adjustments(config, larger))
    before, after = parameters["token_embedding"]["embedding"], loaded.parameters["token_embedding"]["embedding"]
    np.testing.assert_array_equal(after[:24], before)
    np.testing.assert_allclose(after[24:], np.broadcast_to(before.mean(axis=0), (8, 16)), rtol=1e-5, atol=1e-6)
    if not tied:
        columns = loaded.parameters["output"]["kernel"][:, 24:]
        mean = parameters["output"]["kernel"].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(columns, np.broadcast_to(mean, (16, 8)), rtol=1e-5, atol=1e-6)
    assert len(loaded.adjusted) == (1 if tied else 2)
    assert "vocabulary extended from 24 to 32 by the mean of the existing rows" in loaded.adjusted[0]


def test_a_vocabulary_does_not_shrink(folder: Path) -> None:
    smaller = CONFIG.model_copy(update={"vocab_size": 20})
    adjustments = decoder_adjustments(CONFIG, smaller)
    assert adjustments == {}
    with pytest.raises(WeightsError, match=r"found \[24, 16\], expected \[20, 16\]"):
        load(folder, TABLE, abstract_parameters(smaller), adjustments=adjustments)


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin.*Convert them to safetensors"):
        load(tmp_path, TABLE, ABSTRACT)


def test_missing_files_are_named(tmp_path: Path, parameters: dict) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(tmp_path / "nowhere", TABLE, ABSTRACT)
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor"):
        load(tmp_path, TABLE, ABSTRACT)
    save(tmp_path, TABLE, parameters, shard_bytes=4000)
    (tmp_path / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    sorted(tmp_path.glob("model-*"))[1].unlink()
    with pytest.raises(FileNotFoundError, match="lists files that are not in the folder: model-0000"):
        load(tmp_path, TABLE, ABSTRACT)


def test_layers_stored_in_different_formats_lose_nothing(folder: Path, parameters: dict) -> None:
    scale = parameters["blocks"]["attention_norm"]["scale"]
    change(folder, model__layers__0__input_layernorm__weight=np.asarray(scale[0].astype(jnp.bfloat16)))
    loaded = load(folder, TABLE, ABSTRACT).parameters["blocks"]["attention_norm"]["scale"]
    np.testing.assert_array_equal(loaded[1:], scale[1:])
