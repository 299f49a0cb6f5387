"""Run files in configs/ on the machines that they are meant for: they fit, and move what they should, no more."""

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from mllm_jax.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'mllm_jax[plan]'"
    ),
]


class Target(NamedTuple):
    topology: str
    overrides: tuple[str, ...] = ()
    memory: float = 16e9
    """Bytes of a device that no stage may pass."""


TARGETS = {
    "demo.yaml": Target("v5e:2x2", memory=0.2e9),
    "llava15_7b.yaml": Target("v5e:8x16", ("model.decoder.architecture.stack.remat=full",), memory=4e9),
}
"""The mesh of each shards over one axis alone."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_shipped_config_fits_and_moves_its_parameters_and_gradients_alone(name, capsys):
    target = TARGETS[name]
    assert main(["plan", str(CONFIGS / name), *target.overrides, "--topology", target.topology, "--json"]) == 0
    for plan in json.loads(capsys.readouterr().out)["stages"]:
        assert plan["memory"]["peak"] < target.memory and not plan["replicated"], plan["stage"]
        (axis,) = (axis for axis, length in plan["mesh"].items() if length > 1)
        moved = {use["kind"]: use["bytes"] for use in plan["collectives"]}
        assert {use["axes"] for use in plan["collectives"]} == {axis}, plan["stage"]
        state = {name: size * plan["devices"] for name, size in plan["state_bytes"].items() if axis == "fsdp"}
        parameters = sum(size for part, size in state.items() if part.startswith(("trainable", "frozen")))
        trained = sum(size for part, size in state.items() if part.startswith("trainable"))
        # Parameters in bf16 are gathered at most for the forward pass, for doing it again, and for the backward pass.
        assert moved.get("all-gather", 0.0) <= 3.1 * parameters, plan["stage"]
        if axis == "fsdp":
            # Gradients go once, in f32 or bf16; beside them only what the frozen towers are gathered by.
            reduced = moved.get("all-reduce", 0.0) + moved.get("reduce-scatter", 0.0)
            assert reduced <= 1.1 * trained + 0.1 * parameters, plan["stage"]
