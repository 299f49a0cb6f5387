"""Reading parameters back from a run directory, for the next stage, for export and for generation."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.checkpoint.checkpointer import DESCRIPTION, PARAMETERS, CheckpointError, Json
from mllm_jax.checkpoint.layout import OBJECTIVE, checkpoints_folder, frozen_folder, stage_folders
from mllm_jax.parallel.rules import ParameterTree


class StoredStep(NamedTuple):
    """One whole checkpoint on disk."""

    stage: Path
    step: int

    @property
    def folder(self) -> Path:
        return checkpoints_folder(self.stage) / str(self.step)


def stored_steps(stage: Path) -> list[StoredStep]:
    """The whole checkpoints of a stage, oldest first; what is half-written does not count."""
    folder = checkpoints_folder(stage)
    steps = ocp.utils.checkpoint_steps(folder.absolute()) if folder.is_dir() else []
    return [StoredStep(stage, step) for step in sorted(steps)]


def last_stored_step(stage: Path) -> StoredStep:
    """The newest whole checkpoint of a stage.

    Raises:
        FileNotFoundError: the stage has none.
    """
    steps = stored_steps(stage)
    if not steps:
        raise FileNotFoundError(
            f"{stage} holds no whole checkpoint, but its stage is needed. Restore the folder, or remove the run's "
            "folders from this stage on to run them again."
        )
    return steps[-1]


def latest_stored_step(run: Path) -> StoredStep:
    """The newest whole checkpoint of the latest stage that has one.

    Raises:
        FileNotFoundError: the run directory holds no checkpoint.
    """
    for stage in reversed(stage_folders(run)):
        steps = stored_steps(stage)
        if steps:
            return steps[-1]
    raise FileNotFoundError(f"{run} holds no checkpoint: expected {run}/stages/<index>_<name>/checkpoints/<step>.")


def read_description(stored: StoredStep) -> Json:
    """What was said about the run and its tokenizer when the checkpoint was saved."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore((stored.folder / DESCRIPTION).absolute())


def read_trained(stored: StoredStep, parameters: ParameterTree) -> ParameterTree:
    """The parameters that trained in this stage, and only these.

    Args:
        stored: the checkpoint.
        parameters: all parameters of the model as `ShapeDtypeStruct` with shardings; dtypes are converted to these.

    Raises:
        CheckpointError: the model has no parameter of a stored name, or of another shape.
    """
    return _read_subset(stored.folder / PARAMETERS, flatten_dict(parameters, sep="/"))


def read_parameters(stored: StoredStep, parameters: ParameterTree) -> ParameterTree:
    """All parameters as they were at a checkpoint: those that trained and those that were frozen.

    Args:
        stored: the checkpoint.
        parameters: as for `read_trained`.

    Raises:
        CheckpointError: parameters of the model that are not stored, or stored ones that it does not have.
    """
    wanted = flatten_dict(parameters, sep="/")
    found = flatten_dict(read_trained(stored, parameters), sep="/")
    if frozen_folder(stored.stage).is_dir():
        found |= flatten_dict(_read_subset(frozen_folder(stored.stage), wanted), sep="/")
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise CheckpointError(f"{stored.stage} lacks {len(missing)} parameters of the model: {', '.join(missing[:8])}.")
    return unflatten_dict(found, sep="/")


def read_frozen(stage: Path, frozen: ParameterTree) -> ParameterTree:
    """The parameters that did not train in a stage.

    Args:
        stage: folder of the stage.
        frozen: these parameters as `ShapeDtypeStruct` with shardings.

    Raises:
        CheckpointError: other parameters are stored than these.
    """
    folder = frozen_folder(stage)
    found = _read_subset(folder, flatten_dict(frozen, sep="/")) if folder.is_dir() else {}
    if flatten_dict(found).keys() != flatten_dict(frozen).keys():
        raise CheckpointError(
            f"{folder} does not hold the frozen parameters of this stage. A stage goes on with the model and the "
            "trainable patterns that it began with; to change them, start a new run directory."
        )
    return found


def frozen_leaves(stored: StoredStep) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and dtype of what did not train in a checkpoint's stage, as it is stored."""
    folder = frozen_folder(stored.stage)
    tree = flatten_dict(_stored_tree(folder), sep="/") if folder.is_dir() else {}
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in tree.items()}


def _read_subset(folder: Path, wanted: dict[str, Any]) -> ParameterTree:
    """What is stored of the wanted parameters; what a stage's objective owned is for that stage alone to read."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = flatten_dict(_stored_tree(folder), sep="/")
        stored = {path: leaf for path, leaf in stored.items() if path in wanted or not path.startswith(f"{OBJECTIVE}/")}
        unknown = sorted(stored.keys() - wanted.keys())
        if unknown:
            raise CheckpointError(f"{folder} holds parameters that the model does not have: {', '.join(unknown[:8])}.")
        for path, leaf in stored.items():
            expected = wanted[path].shape
            if tuple(leaf.shape) != tuple(expected):
                raise CheckpointError(f"{folder} holds {path} as {tuple(leaf.shape)}, but the model has {expected}.")
        target = unflatten_dict({path: wanted[path] for path in stored}, sep="/")
        places = ocp.checkpoint_utils.construct_restore_args(target)
        return reader.restore(folder.absolute(), args=ocp.args.PyTreeRestore(target, places, partial_restore=True))


def _stored_tree(folder: Path) -> ParameterTree:
    # The handler and not a checkpointer, which warns that an item of a checkpoint is no checkpoint.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return handler.metadata(folder.absolute()).tree
    finally:
        handler.close()
