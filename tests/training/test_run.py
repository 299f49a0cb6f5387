import contextlib
import io
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from rich.console import Console

from mllm_jax.checkpoint.checkpointer import Checkpointer, CheckpointError
from mllm_jax.checkpoint.description import tokenizer_files
from mllm_jax.checkpoint.layout import mark_done
from mllm_jax.checkpoint.reading import (
    StoredStep,
    last_stored_step,
    latest_stored_step,
    read_description,
    read_parameters,
    stored_steps,
)
from mllm_jax.models.layers.precision import PrecisionConfig
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.averages import AverageConfig
from mllm_jax.training.plan import StageError, plan_stages
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.stage_run import first_parameters
from tests.support.tiny_training import MODEL, TinyFeed, initial_parameters, tiny_run, tiny_stages


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def finished(one_device, tmp_path_factory):
    """A run of both stages, with frozen parameters in bfloat16, and what it printed."""
    output = io.StringIO()
    folder = tmp_path_factory.mktemp("finished")
    run = tiny_run(folder, one_device, PrecisionConfig(frozen="bfloat16", compute="float32"), Console(file=output))
    assert run_stages(tiny_stages(), run) is Outcome.FINISHED
    return run, output


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses_of(folder):
    return [(line["stage"], line["step"], line["loss"]) for line in metrics_of(folder) if "loss" in line]


def parameters_of(stored: StoredStep, run):
    abstract = plan_stages(tiny_stages(), run)[1].abstract
    whole = initial_parameters({**abstract.trainable, **abstract.frozen})
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32", sharding=leaf.sharding), whole)
    return flatten_dict(jax.device_get(read_parameters(stored, wanted)), sep="/")


def test_both_stages_run_and_leave_metrics_checkpoints_and_a_table(finished):
    run, output = finished
    assert [(stage, step) for stage, step, _ in losses_of(run.folder)] == [
        (stage, step) for stage in ("align", "instruct") for step in range(1, 7)
    ]
    validations = [line for line in metrics_of(run.folder) if "validation_loss" in line]
    assert [(line["stage"], line["step"]) for line in validations] == [("align", 3), ("align", 6)]
    assert [stored.step for stored in stored_steps(run.folder / "stages" / "0_align")] == [4, 6]
    assert "stage align: 6 steps" in output.getvalue()
    assert "connector" in output.getvalue()


def test_a_finished_run_says_so_and_does_nothing(finished):
    run, output = finished
    before = metrics_of(run.folder)
    assert run_stages(tiny_stages(), run) is Outcome.ALREADY_FINISHED
    assert "is finished: all 2 stages are done" in output.getvalue()
    assert metrics_of(run.folder) == before


def test_each_stage_changes_what_it_trains_and_nothing_else(finished):
    run, _ = finished
    align, instruct = (
        parameters_of(stored_steps(run.folder / "stages" / name)[-1], run) for name in ("0_align", "1_instruct")
    )
    for path, leaf in align.items():
        changed = not np.array_equal(leaf, instruct[path])
        assert changed == (not path.startswith("encoder")), path


def test_a_stage_starts_from_full_precision_where_the_one_before_kept_bfloat16(finished):
    run, _ = finished
    align, instruct = plan_stages(tiny_stages(), run)
    exact = initial_parameters(instruct.abstract_parameters())
    begins = first_parameters(instruct, [align], run)
    assert align.abstract.frozen["decoder"]["output"]["kernel"].dtype == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, begins["decoder"], exact["decoder"])
    trained = parameters_of(last_stored_step(align.folder), run)
    np.testing.assert_array_equal(begins["connector"]["layers_0"]["kernel"], trained["connector/layers_0/kernel"])


def test_a_run_killed_before_its_stage_was_marked_done_only_marks_it(finished):
    run, output = finished
    (run.folder / "stages" / "1_instruct" / "done.json").unlink()
    before = losses_of(run.folder)
    assert run_stages(tiny_stages(), run) is Outcome.FINISHED
    assert "stage align is done" in output.getvalue()
    assert losses_of(run.folder) == before


def test_fewer_steps_than_were_done_are_refused(finished):
    run, _ = finished
    done = run.folder / "stages" / "1_instruct" / "done.json"
    mark = done.read_text()
    done.unlink()
    align, instruct = tiny_stages()
    with pytest.raises(CheckpointError, match="has done 6 steps already, but the stage has only 5"):
        run_stages([align, instruct.model_copy(update={"steps": 5})], run)
    done.write_text(mark)


def test_a_checkpoint_says_what_it_is(finished):
    run, _ = finished
    description = read_description(latest_stored_step(run.folder))
    assert description["stage"] == "instruct"
    assert description["run"] == {"output": str(run.folder)}
    assert tokenizer_files(description) == {"tokenizer.json": b"{}", "spiece.model": b"\xff\x00"}


class CrashingFeed(TinyFeed):
    def __next__(self):
        loaded = super().__next__()
        if self._next == 6 and self._request.split == "train":
            raise OSError("the disk is gone")
        return loaded


@pytest.mark.parametrize("average", [None, AverageConfig(decay=0.5)], ids=["", "averaged"])
def test_a_crashed_run_goes_on_bit_identically_and_repeats_no_metric(average, one_device, tmp_path):
    stages = [tiny_stages()[0].model_copy(update={"average": average})]
    run = tiny_run(tmp_path / "whole", one_device)
    run_stages(stages, run)
    crashing = tiny_run(tmp_path / "crashed", one_device, feed=CrashingFeed)
    with pytest.raises(OSError, match="the disk is gone"):
        run_stages(stages, crashing)
    again = tiny_run(tmp_path / "crashed", one_device)
    assert run_stages(stages, again) is Outcome.FINISHED
    assert losses_of(again.folder) == losses_of(run.folder)
    whole, resumed = (parameters_of(latest_stored_step(folder), run) for folder in (run.folder, again.folder))
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, resumed[path], err_msg=path)


def test_a_stage_leaves_its_average_and_goes_on_from_its_weights(one_device, tmp_path):
    averaged = tiny_stages()[0].model_copy(update={"average": AverageConfig(decay=0.5)})
    run = tiny_run(tmp_path, one_device)
    run_stages([averaged], run)
    stage = plan_stages([averaged], run)[0]
    with contextlib.closing(Checkpointer(stage.folder, 2)) as checkpointer:
        restored = checkpointer.restore(6, stage.abstract.trainable, stage.abstract.optimizer_state, averaged=True)
        with pytest.raises(CheckpointError, match="it holds an average of the weights"):
            checkpointer.restore(6, stage.abstract.trainable, stage.abstract.optimizer_state)
    left, weights = parameters_of(last_stored_step(stage.folder), run), flatten_dict(restored.trainable, sep="/")
    for path, leaf in flatten_dict(restored.average, sep="/").items():
        np.testing.assert_array_equal(left[path], leaf)
        assert not np.array_equal(left[path], weights[path])


def test_stages_that_cannot_run_are_refused_together_before_anything_starts(tmp_path):
    align, instruct = tiny_stages()
    stages = [
        align.model_copy(update={"rows": 12}),
        instruct.model_copy(update={"name": "align", "trainable": ("conector/**",)}),
    ]
    with pytest.raises(StageError) as error:
        run_stages(stages, tiny_run(tmp_path))
    message = str(error.value)
    assert "stages.0 (align): rows: 12 rows cannot be split over data 8 x fsdp 1 x accumulate 1 = 8" in message
    assert "stages.1 (align): name: another stage has this name" in message
    assert "stages.1 (align): trainable: The pattern 'conector/**' matches no parameter" in message
    assert not (tmp_path / "stages").exists()


def test_a_stage_is_not_trained_again_below_one_that_began_from_it(one_device, tmp_path):
    run = tiny_run(tmp_path, one_device)
    align, instruct = plan_stages(tiny_stages(), run)
    mark_done(instruct.folder, {})
    with pytest.raises(StageError) as error:
        run_stages(tiny_stages(), run)
    said = f"stages.0 (align): {align.folder} is not finished, but stage instruct has begun from what it left"
    assert str(error.value).startswith(said) and f"remove {instruct.folder}" in str(error.value)
    assert not align.folder.exists()


def test_rows_longer_than_the_decoder_has_learned_positions_for_are_refused(tmp_path):
    learned = MODEL.decoder.model_copy(update={"positions": "learned", "max_positions": 16})
    model = MODEL.model_copy(update={"decoder": learned})
    align, instruct = tiny_stages()
    fitting, longer = align.model_copy(update={"row_length": 16}), instruct.model_copy(update={"row_length": 17})
    with pytest.raises(StageError) as error:
        run_stages((fitting, longer), tiny_run(tmp_path, model=model))
    assert str(error.value).startswith("stages.1 (instruct): row_length: found 17, expected at most 16")
    plan_stages((fitting, longer), tiny_run(tmp_path))
