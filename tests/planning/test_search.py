"""Searches and sweeps, over plans that cost nothing."""

from types import SimpleNamespace

import pytest
import yaml

from mllm_jax.config import load_run
from mllm_jax.planning.attempts_terminal import attempts_table
from mllm_jax.planning.search import best_of, choices_of, pareto, search, write_override
from mllm_jax.planning.sweep import Attempt, swept
from mllm_jax.planning.topology import parse_topology

CONFIG = "configs/demo.yaml"
CAPACITY = 10.0


class Machine:
    """Plans a run by two lines of arithmetic: recomputing takes time, accumulating too, and both save memory."""

    def __init__(self):
        self.compiled = 0

    def __call__(self, changes):
        if changes.get("parallel") == "wrong":
            return Attempt(changes, problem="does not divide")
        self.compiled += 1
        full, parts = changes.get("remat") == "full", int(changes.get("accumulate", 1))
        peak, seconds = (8.0 if full else 32.0) / parts + 1, (1.3 if full else 1.0) + 0.05 * parts
        fits = peak <= CAPACITY
        failure = None if fits else SimpleNamespace(needed=peak)
        memory = SimpleNamespace(peak=peak) if fits else None
        plan = SimpleNamespace(fits=fits, failure=failure, memory=memory, predicted=seconds if fits else None)
        return Attempt(changes, (plan,))


CHOICES = {"remat": ["none", "full"], "accumulate": ["1", "2", "4"], "parallel": ["wrong"]}
START = {"remat": "none", "accumulate": "1"}


def test_a_search_finds_what_fits_and_then_what_is_faster():
    machine = Machine()
    attempts = search(CHOICES, START, machine, budget=20)
    best = best_of(attempts)
    assert best is not None and best.changes == {"remat": "none", "accumulate": "4"}
    assert (pareto(attempts)[0].seconds, pareto(attempts)[0].peak) == pytest.approx((1.2, 9.0))
    peaks = [each.peak for each in pareto(attempts)]
    assert peaks == sorted(peaks, reverse=True)
    assert any(each.problem == "does not divide" for each in attempts)


def test_a_search_ends_when_its_budget_is_spent():
    machine = Machine()
    attempts = search(CHOICES, START, machine, budget=2)
    assert machine.compiled == 2 and len(attempts) == 2


def test_what_is_searched_of_a_stage_begins_with_the_mesh_that_takes_least_memory():
    stage = load_run(CONFIG, check_paths=False).stages[0]
    choices = choices_of(stage, parse_topology("v5e:2x2"))
    assert choices["parallel"][0] == "{data: 1, fsdp: -1, tensor: 1}"
    assert choices["stages.align.accumulate"] == ["1", "2", "4", "8", "16"]


def test_the_best_is_a_run_file_that_extends_the_one_it_came_from(tmp_path):
    output = tmp_path / "found/best.yaml"
    write_override(CONFIG, {"parallel": "{data: 2, fsdp: -1}", "stages.align.accumulate": "4"}, str(output))
    assert yaml.safe_load(output.read_text())["stages"] == {"align": {"accumulate": 4}}
    run = load_run(output, check_paths=False)
    assert (run.parallel.data, run.parallel.fsdp, run.stages[0].accumulate) == (2, -1, 4)
    assert run.stages[1] == load_run(CONFIG, check_paths=False).stages[1]


def test_sweeps_are_all_combinations_and_a_key_without_dots_is_of_every_stage():
    stages = load_run(CONFIG, check_paths=False).stages
    found = list(swept(["rows=16,32", "parallel=[1,2],{data: 2, fsdp: 1}"], stages))
    assert len(found) == 4
    assert found[1] == {
        "stages.align.rows": "16",
        "stages.instruct.rows": "16",
        "parallel": "{data: 2, fsdp: 1}",
    }
    with pytest.raises(ValueError, match="neither a stage nor a run has 'row'"):
        list(swept(["row=1"], stages))


def test_a_table_has_a_column_for_every_key_and_one_for_that_of_several_stages():
    keys = ("stages.a.rows", "stages.b.rows", "model.decoder.stack.remat", "model.encoder.stack.remat")
    plan = SimpleNamespace(
        memory=None, failure=None, fits=True, predicted=0.5, mfu=0.4, feed=None, stage=SimpleNamespace(name="a")
    )
    table = attempts_table("", [Attempt(dict.fromkeys(keys, "1"), (plan,))])
    names = [str(column.header) for column in table.columns]
    assert names[:5] == ["", "rows", "remat", "model.encoder.stack.remat", "stage"]
