"""Tuning of biases and norms alone, by path patterns: nothing else has a gradient, a moment or another bit."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mllm_jax.checkpoint.reading import last_stored_step, read_trained
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.plan import plan_stages
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.stage_run import first_parameters
from tests.support.tiny_training import MODEL, tiny_run, tiny_stages


def test_biases_and_norms_of_the_decoder_train_alone(tmp_path):
    biased = MODEL.decoder.model_copy(update={"attention_bias": True, "norm": "layer"})
    run = tiny_run(
        tmp_path, make_mesh(MeshConfig(), jax.devices()[:1]), model=MODEL.model_copy(update={"decoder": biased})
    )
    stage = tiny_stages(steps=3)[0].model_copy(update={"trainable": ("decoder/**/bias", "decoder/**/*norm/scale")})
    (planned,) = plan_stages([stage], run)
    trainable = flatten_dict(planned.abstract.trainable, sep="/")
    assert {path.rpartition("blocks/")[2] for path in trainable} == {
        *(f"attention/{name}/bias" for name in ("query", "key", "value", "output")),
        *(f"{name}/{part}" for name in ("attention_norm", "feed_forward_norm") for part in ("scale", "bias")),
        "decoder/final_norm/scale",
        "decoder/final_norm/bias",
    }
    # The loop compares the bits of all others, first step and last.
    assert run_stages([stage], run) is Outcome.FINISHED
    stored = flatten_dict(read_trained(last_stored_step(planned.folder), planned.abstract_parameters()), sep="/")
    begun = flatten_dict(first_parameters(planned, [], run), sep="/")
    assert stored.keys() == trainable.keys()
    assert all(not np.array_equal(stored[path], begun[path]) for path in stored if "key/bias" not in path)
