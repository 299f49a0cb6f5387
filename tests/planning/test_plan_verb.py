"""`mllm plan` as a user calls it, on the small demo's run file."""

import importlib.util
import json
from pathlib import Path

import pytest

from mllm_jax.cli import main

DEMO = str(Path(__file__).parents[2] / "configs/demo.yaml")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'mllm_jax[plan]'"
)


def planned(capsys, *arguments: str) -> list[dict]:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["stages"]


def test_a_cpu_with_several_devices(capsys):
    overrides = ["parallel={data: 2, fsdp: 2}", "stages.align.accumulate=2"]
    (plan,) = planned(capsys, DEMO, *overrides, "--topology", "cpu:4", "--stage", "align")

    assert plan["mesh"] == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 1} and plan["fits"]
    state = plan["state_bytes"]
    # Adam keeps two of every parameter that trains.
    assert state["optimizer"] == pytest.approx(
        2 * sum(size for name, size in state.items() if "trainable" in name), rel=0.01
    )
    assert plan["memory"]["arguments"] == pytest.approx(sum(state.values()), rel=0.01)
    asked, done = plan["model_flops"], plan["executed"]["flops"]
    assert done["decoder"] * 4 == pytest.approx(asked["decoder"], rel=0.1)
    assert done["head"] * 4 == pytest.approx(asked["head"], rel=0.01)
    kinds = {(use["kind"], use["axes"]) for use in plan["collectives"]}
    assert ("all-gather", "fsdp") in kinds and any(kind == "all-reduce" for kind, _ in kinds)
    assert plan["step_seconds"]["predicted"] is None


def test_a_gpu_is_planned_from_the_state_and_the_model_alone(capsys):
    arguments = ["--topology", "h100:8", "--stage", "instruct", "--price-per-chip-hour", "2", "--mfu", "0.5"]
    (plan,) = planned(capsys, DEMO, *arguments)
    seconds = plan["step_seconds"]["expected"]
    assert seconds == pytest.approx(sum(plan["model_flops"].values()) / (0.5 * 8 * 989e12))
    assert plan["memory"] is None and plan["executed"] is None
    assert plan["bill"]["price"] == pytest.approx(2 * 8 * plan["bill"]["hours"])
    assert plan["feed"]["images"] == pytest.approx(32 / seconds)
    assert any("no compiler for a GPU" in warning for warning in plan["warnings"])


def test_weights_and_a_tokenizer_that_are_not_there_are_named(capsys):
    overrides = ["model.decoder.preset=smollm2_135m", "model.decoder.weights=nowhere/at all", "model.tokenizer=null"]
    overrides += ["model.decoder.architecture={}"]
    assert main(["plan", DEMO, *overrides, "--topology", "h100:8", "--stage", "align"]) == 0
    said = capsys.readouterr().out
    assert "model.decoder.weights: there is no nowhere/at all; the architecture is that of the preset" in said
    assert "model.tokenizer is null: planned with the decoder's 49,152 tokens and 1 of this project (<image>)" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "v5e:3x4"], "the nearest are v5e:4x4"),
        (["--topology", "h100:7"], "use a multiple of it, such as 14"),
        (["--topology", "h100:8", "parallel.data=3"], "The mesh data 3 needs 3 devices, but there are 8"),
        (["--topology", "h100:8", "--stage", "alin"], "Did you mean 'align'?"),
        (
            ["--topology", "h100:8", "model.decoder.weights=nowhere", "model.decoder.preset=null"],
            "model.decoder.weights",
        ),
    ],
)
def test_what_cannot_be_planned_is_told_before_anything_is_compiled(capsys, arguments, says):
    assert main(["plan", DEMO, *arguments]) == 1
    assert says in capsys.readouterr().err


@needs_libtpu
def test_a_tpu_that_is_not_there(capsys):
    (plan,) = planned(capsys, DEMO, "--topology", "v5e:2x2", "--stage", "align")

    step, memory = plan["step_seconds"], plan["memory"]
    assert memory["arguments"] <= memory["peak"] <= memory["capacity"]
    assert step["predicted"] == pytest.approx(sum(step["terms"].values()))
    assert step["expected"] == pytest.approx(0.92 * step["predicted"])
    assert 0 < plan["mfu"]["predicted"] < 0.1  # A model this small leaves most of a chip idle.
    assert {(use["kind"], use["axes"]) for use in plan["collectives"]} == {("all-reduce", "data")}
    trained = sum(size for name, size in plan["state_bytes"].items() if name.startswith("trainable"))
    assert sum(use["bytes"] for use in plan["collectives"]) == pytest.approx(trained, rel=0.1)


@needs_libtpu
def test_a_step_that_does_not_fit_is_a_report(capsys):
    overrides = [
        "stages.align.rows=65536",
        "stages.align.row_length=512",
        "model.decoder.architecture.max_positions=512",
    ]
    assert main(["plan", DEMO, *overrides, "--topology", "v5e:1x1", "--stage", "align"]) == 3
    said = capsys.readouterr().out
    assert "DOES NOT FIT: a device needs" in said and "has 16.9 GB" in said and "kept from the forward" in said


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the TPU compiler is installed")
def test_without_the_tpu_compiler_it_is_said_what_to_install(capsys):
    assert main(["plan", DEMO, "--topology", "v5e:2x2"]) == 1
    assert "pip install 'mllm_jax[plan]'" in capsys.readouterr().err


def test_a_sweep_has_a_line_for_every_value_and_says_what_cannot_run(capsys):
    assert main(["plan", DEMO, "--topology", "h100:2", "--stage", "align", "--sweep", "rows=16,32,15", "--json"]) == 0
    attempts = json.loads(capsys.readouterr().out)["attempts"]
    first, second = (each["stages"][0]["model_flops"]["decoder"] for each in attempts[:2])
    assert second == pytest.approx(2 * first) and attempts[1]["changes"] == {"stages.align.rows": "32"}
    assert "15 rows do not divide" in attempts[2]["problem"]


def test_a_search_needs_a_compiler_that_says_times(capsys, tmp_path):
    assert main(["plan", DEMO, "--topology", "h100:2", "--search", str(tmp_path / "best.yaml")]) == 1
    assert "only the compiler of a TPU says how long a step takes" in capsys.readouterr().err
