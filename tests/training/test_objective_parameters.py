"""Parameters that a stage's objective owns: saved and restored with the stage, and gone after it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training import plan
from mllm_jax.training.objective import Losses, OwnParameters
from mllm_jax.training.plan import plan_stages
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.stage_run import first_parameters
from tests.support.tiny_training import TinyFeed, tiny_run, tiny_stages


def with_scale(train):
    """Next-token prediction that multiplies its loss by a number, which may train, and reports it."""
    plain = plan.make_objective
    own = OwnParameters(
        shapes={"heads/scale": jax.ShapeDtypeStruct((2,), jnp.float32)},
        axes={"heads/scale": (None,)},
        initial=lambda parameters, key: {"heads/scale": jnp.full((2,), 1.5)},
        train=train,
    )

    def make(stage, config):
        objective = plain(stage, config)

        def losses(parameters, batch, key):
            scale = jnp.mean(parameters["objective"]["heads"]["scale"])
            return Losses(objective(parameters, batch, key) * scale, {"scale": scale * objective.weight(batch)})

        return replace(objective, losses=losses, own=own)

    return make


class StoppingFeed(TinyFeed):
    def __next__(self):
        loaded = super().__next__()
        if self._next == 6 and self._request.split == "train":
            raise OSError("the disk is gone")
        return loaded


@pytest.mark.parametrize("train", [True, False])
def test_they_live_as_long_as_their_stage(train, tmp_path, monkeypatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setattr(plan, "make_objective", with_scale(train))
    align, instruct = tiny_stages()
    with pytest.raises(OSError, match="the disk is gone"):
        run_stages((align,), tiny_run(tmp_path / "cut", mesh, feed=StoppingFeed))
    run = tiny_run(tmp_path / "cut", mesh)
    assert run_stages((align,), run) is Outcome.FINISHED
    undisturbed = tiny_run(tmp_path / "whole", mesh)
    assert run_stages((align,), undisturbed) is Outcome.FINISHED
    lines = [(each.folder / "metrics.jsonl").read_text().splitlines()[-1] for each in (run, undisturbed)]
    assert '"validation_scale": ' in lines[0] and lines[0] == lines[1]
    assert ('"validation_scale": 1.5' in lines[0]) is not train
    monkeypatch.undo()
    left = []
    for each in (run, undisturbed):
        planned = plan_stages((align, instruct), each)
        left.append(flatten_dict(jax.device_get(first_parameters(planned[1], planned[:1], each)), sep="/"))
    assert not any(path.startswith("objective/") for path in left[0])
    jax.tree.map(np.testing.assert_array_equal, *left)
