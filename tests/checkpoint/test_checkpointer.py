import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mllm_jax.checkpoint.checkpointer import Checkpointer, CheckpointError
from mllm_jax.checkpoint.layout import frozen_folder, is_done, mark_done, stage_folder, stage_folders
from mllm_jax.checkpoint.reading import latest_stored_step, read_description, read_parameters, read_trained
from mllm_jax.parallel.mesh import MeshConfig, make_mesh

POSITION = {"lanes": [1, 2, 3]}
DESCRIPTION = {"run": {"seed": 1}, "tokenizer": {}}


def placed(mesh):
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    trainable = {"connector": {"kernel": jax.device_put(jnp.arange(64.0).reshape(8, 8), sharding)}}
    frozen = {"decoder": {"kernel": jax.device_put(jnp.full((8, 4), 0.5, jnp.bfloat16), sharding)}}
    return trainable, frozen


def abstract(tree, mesh=None, dtype=None):
    def describe(leaf):
        sharding = leaf.sharding if mesh is None else NamedSharding(mesh, PartitionSpec(None, "tensor"))
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def save_steps(stage, trainable, steps, keep=2):
    checkpointer = Checkpointer(stage, keep)
    optimizer_state = {"moment": jax.tree.map(lambda leaf: 2 * leaf, trainable)}
    for step in steps:
        checkpointer.save(step, trainable, optimizer_state, POSITION, DESCRIPTION)
    checkpointer.wait()
    return checkpointer, optimizer_state


def test_a_checkpoint_restores_onto_another_mesh(tmp_path):
    trainable, _ = placed(make_mesh(MeshConfig(data=1, fsdp=8)))
    checkpointer, optimizer_state = save_steps(tmp_path, trainable, [3])
    other = make_mesh(MeshConfig(data=2, tensor=4))
    restored = checkpointer.restore(3, abstract(trainable, other), abstract(optimizer_state, other))
    kernel = restored.trainable["connector"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "tensor")
    np.testing.assert_array_equal(kernel, trainable["connector"]["kernel"])
    moment = restored.optimizer_state["moment"]["connector"]["kernel"]
    np.testing.assert_array_equal(moment, 2 * trainable["connector"]["kernel"])
    assert (restored.position, restored.description) == (POSITION, DESCRIPTION)


def test_only_the_latest_checkpoints_are_kept(tmp_path):
    trainable, _ = placed(make_mesh(MeshConfig()))
    save_steps(tmp_path / "stages" / "0_align", trainable, [1, 2, 3], keep=2)
    assert sorted(path.name for path in (tmp_path / "stages/0_align/checkpoints").iterdir()) == ["2", "3"]
    assert latest_stored_step(tmp_path).step == 3


def test_a_half_written_checkpoint_is_not_there_and_is_cleared_away(tmp_path):
    trainable, _ = placed(make_mesh(MeshConfig()))
    save_steps(tmp_path, trainable, [1])[0].close()
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    checkpointer = Checkpointer(tmp_path, keep=2)
    assert checkpointer.latest_step() == 1
    checkpointer.save(2, trainable, {"count": jnp.zeros(())}, POSITION, DESCRIPTION)
    checkpointer.wait()
    assert sorted(path.name for path in half.parent.iterdir()) == ["1", "2"]


def test_frozen_parameters_are_stored_once_and_join_the_trained_ones(tmp_path):
    trainable, frozen = placed(make_mesh(MeshConfig(data=1, fsdp=8)))
    stage = stage_folder(tmp_path, 0, "align")
    checkpointer, _ = save_steps(stage, trainable, [5])
    # What a process that was killed while it wrote them leaves behind.
    (stage / "frozen.orbax-checkpoint-tmp").mkdir()
    checkpointer.save_frozen(frozen)
    stored = latest_stored_step(tmp_path)
    wanted = abstract(trainable | frozen, dtype=jnp.float32)
    parameters = read_parameters(stored, wanted)
    assert parameters["decoder"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(parameters["decoder"]["kernel"], np.full((8, 4), 0.5))
    assert list(read_trained(stored, wanted)) == ["connector"]
    assert read_description(stored) == DESCRIPTION
    assert {path.name for path in stored.folder.iterdir()} >= {"parameters", "optimizer", "position", "description"}
    assert frozen_folder(stage).is_dir()


def test_parameters_that_do_not_fit_are_named(tmp_path):
    trainable, _ = placed(make_mesh(MeshConfig()))
    checkpointer, optimizer_state = save_steps(tmp_path / "stages" / "0_align", trainable, [1])
    stored = latest_stored_step(tmp_path)
    wanted = abstract(trainable)
    extra = {"decoder": {"kernel": wanted["connector"]["kernel"]}}
    with pytest.raises(CheckpointError, match="lacks 1 parameters of the model: decoder/kernel"):
        read_parameters(stored, wanted | extra)
    with pytest.raises(CheckpointError, match="the model does not have: connector/kernel"):
        read_parameters(stored, extra)
    with pytest.raises(CheckpointError, match="does not fit this stage"):
        checkpointer.restore(1, wanted | extra, abstract(optimizer_state))


def test_saving_in_the_background_keeps_the_values_of_its_step(tmp_path):
    mesh = make_mesh(MeshConfig())
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    array = jax.device_put(jnp.zeros((8, 1 << 16)), sharding)
    grow = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)
    checkpointer = Checkpointer(tmp_path, keep=10)
    for step in range(4):
        checkpointer.save(step, {"leaf": array}, {"count": jnp.zeros(())}, POSITION, DESCRIPTION)
        array = grow(array)
    checkpointer.wait()
    target = {"leaf": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)}
    for step in range(4):
        restored = checkpointer.restore(step, target, abstract({"count": jnp.zeros(())}))
        np.testing.assert_array_equal(restored.trainable["leaf"], np.full(array.shape, float(step)))


def test_stages_are_listed_in_their_order_and_marked_when_done(tmp_path):
    for index in (10, 2, 0):
        stage_folder(tmp_path, index, "x").mkdir(parents=True)
    assert [path.name for path in stage_folders(tmp_path)] == ["0_x", "2_x", "10_x"]
    stage = stage_folder(tmp_path, 0, "x")
    assert not is_done(stage)
    mark_done(stage, {"step": 4})
    assert is_done(stage)
