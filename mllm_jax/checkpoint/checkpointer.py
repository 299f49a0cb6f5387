"""Checkpoints of a stage: parameters that train, optimizer, data position and description, one atomic unit."""

from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.checkpoint.layout import checkpoints_folder, frozen_folder
from mllm_jax.parallel.rules import ParameterTree

Json = dict[str, Any]

PARAMETERS, OPTIMIZER, POSITION, DESCRIPTION = "parameters", "optimizer", "position", "description"
UNAVERAGED = "unaveraged_parameters"
"""What trains itself, where `PARAMETERS` is its running average."""


class CheckpointConfig(Config):
    """When checkpoints are written; the last step of a stage always has one."""

    every: int = Field(default=500, gt=0)
    """Steps from one checkpoint to the next."""
    keep: int = Field(default=2, gt=0)
    """How many of the latest checkpoints of a stage stay on disk."""


class Restored(NamedTuple):
    """What a checkpoint holds."""

    step: int
    trainable: ParameterTree
    optimizer_state: Any
    average: ParameterTree
    """Of the trainable parameters; empty where none was asked for."""
    position: Json
    """Where the data stream stands after this step."""
    description: Json


class CheckpointError(ValueError):
    """A checkpoint that does not fit what is asked of it."""


class Checkpointer:
    """Writes and reads the checkpoints of one stage; every process of the run makes one and calls it alike.

    Saving copies the arrays to the host and returns; they are written on a thread into a folder that gets its name
    only when it is whole. What a killed process left half-written is removed at the next start.
    """

    def __init__(self, stage: Path, keep: int):
        """Opens the checkpoints of the stage in the folder `stage`."""
        self._stage = stage
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep), cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(
            checkpoints_folder(stage).absolute(),
            options=options,
            item_names=(PARAMETERS, UNAVERAGED, OPTIMIZER, POSITION, DESCRIPTION),
        )

    def latest_step(self) -> int | None:
        """The last step that is there whole."""
        return self._manager.latest_step()

    def save_frozen(self, frozen: ParameterTree) -> None:
        """Stores the parameters that do not train, once a stage and before its first checkpoint."""
        if frozen:
            with ocp.StandardCheckpointer() as writer:
                writer.save(frozen_folder(self._stage).absolute(), frozen, force=True)

    def save(
        self,
        step: int,
        trainable: ParameterTree,
        optimizer_state: Any,
        position: Json,
        description: Json,
        average: ParameterTree | None = None,
    ) -> None:
        """Begins to save the state after `step` steps; waits only for a save that is still under way.

        Args:
            step: steps done.
            trainable: what trains.
            optimizer_state: of it.
            position: where the data stream stands.
            description: of the run.
            average: of what trains; where there is one, it is what readers of the checkpoint get.
        """
        items = {
            PARAMETERS: ocp.args.StandardSave(average or trainable),
            OPTIMIZER: ocp.args.StandardSave(optimizer_state),
            POSITION: ocp.args.JsonSave(position),
            DESCRIPTION: ocp.args.JsonSave(description),
        }
        if average:
            items[UNAVERAGED] = ocp.args.StandardSave(trainable)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, trainable: ParameterTree, optimizer_state: Any, averaged: bool = False) -> Restored:
        """The checkpoint of `step`, placed as the abstract trees say (any mesh, whatever wrote it).

        Args:
            step: one that is there.
            trainable: tree of `ShapeDtypeStruct` with shardings.
            optimizer_state: likewise.
            averaged: whether there is an average, of the same tree.

        Raises:
            CheckpointError: the trees are not those that were saved.
        """
        wanted = {
            PARAMETERS: ocp.args.StandardRestore(trainable),
            OPTIMIZER: ocp.args.StandardRestore(optimizer_state),
            POSITION: ocp.args.JsonRestore(),
            DESCRIPTION: ocp.args.JsonRestore(),
        }
        if averaged:
            wanted[UNAVERAGED] = ocp.args.StandardRestore(trainable)
        try:
            self._check_averaged(step, averaged)
            items = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoints_folder(self._stage) / str(step)} does not fit this stage: {error}. A stage goes on with "
                "the model, the trainable patterns, the optimizer and the average that it began with; to change them, "
                "start a new run directory."
            ) from error
        result, position, description = items[PARAMETERS], items[POSITION], items[DESCRIPTION]
        weights, average = (items[UNAVERAGED], result) if averaged else (result, {})
        return Restored(step, weights, items[OPTIMIZER], average, position, description)

    def _check_averaged(self, step: int, averaged: bool) -> None:
        stored = (checkpoints_folder(self._stage) / str(step) / UNAVERAGED).is_dir()
        if stored != averaged:
            raise ValueError(f"it holds {'an' if stored else 'no'} average of the weights")

    def description(self, step: int) -> Json:
        """The description that was saved with `step`."""
        args = ocp.args.Composite(**{DESCRIPTION: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[DESCRIPTION]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk.

        Raises:
            Exception: whatever made a save in the background fail.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way and ends the threads."""
        self._manager.close()
