import io
import json

import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from rich.console import Console

from data_pipelines.loading.loaded_batch import BatchReport
from mllm_jax.models.parameters import abstract_parameters
from mllm_jax.training.flops import StepCost, peak_flops, step_cost
from mllm_jax.training.metrics import MetricLog, rewind_metrics
from mllm_jax.training.progress import make_progress
from mllm_jax.training.rates import RateMeter
from mllm_jax.training.state import split
from tests.support.tiny_training import MODEL

REPORT = BatchReport(3, 2, {"corrupt": 1}, 0.0, 0.0, 0.0, (), failed_reads=4)
METRICS = {
    "loss": jnp.float32(2.5),
    "tokens": jnp.int32(80),
    "supervised_tokens": jnp.int32(20),
    "images": jnp.int32(4),
    "token_places": jnp.int32(100),
    "attended": jnp.float32(50),
}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


def test_rates_are_those_of_the_steps_since_the_last_report():
    clock = Clock()
    meter = RateMeter(StepCost(per_token=10, per_image=100, per_attended=1), peak=1e4, clock=clock)
    for _ in range(2):
        meter.waiting_for(lambda: clock.advance(0.25))
        clock.advance(0.75)
        meter.count(METRICS, REPORT)
    meter.apart(lambda: clock.advance(10))
    values = meter.report(METRICS)
    assert values["loss"] == 2.5
    assert values["tokens_per_second"] == 80
    assert values["images_per_second"] == 4
    assert values["seconds_per_step"] == 1
    assert values["data_wait_share"] == 0.25
    assert values["supervised_share"] == 0.2
    assert values["padding_share"] == pytest.approx(0.2)
    assert values["model_flops_per_second"] == 80 * 10 + 4 * 100 + 50
    assert values["mfu"] == pytest.approx(0.125)
    assert (values["records"], values["skipped_records"], values["failed_reads"]) == (6, 2, 8)


def test_lines_of_steps_that_will_be_done_again_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"stage": "align", "step": 9}, {"stage": "instruct", "step": 2}, {"stage": "instruct", "step": 4}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "instr')
    rewind_metrics(path, earlier_stages=["align"], stage="instruct", step=2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:2]


def test_metrics_go_to_the_file_to_tensorboard_and_to_a_plain_terminal(tmp_path):
    output = io.StringIO()
    progress = make_progress(Console(file=output, force_terminal=False, width=200), "align", 0, 100)
    log = MetricLog(tmp_path, "align", progress, 0, tensorboard=True)
    log.write(10, {"loss": 2.25, "tokens_per_second": 12345.0})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "stage": "align",
        "step": 10,
        "loss": 2.25,
        "tokens_per_second": 12345.0,
    }
    assert list((tmp_path / "tensorboard" / "align").glob("events.*"))
    assert output.getvalue().strip() == "align 10/100  loss 2.25  tokens/s 12,345"


def test_a_terminal_shows_a_bar():
    output = io.StringIO()
    progress = make_progress(Console(file=output, force_terminal=True, width=200), "align", 0, 4)
    progress.report(2, {"loss": 2.25})
    progress.advance(2)
    progress.report(4, {"validation_loss": 1.5})
    progress.close()
    assert "loss 2.25" in output.getvalue()
    assert "step 4: validation loss 1.5" in output.getvalue()


def test_a_frozen_decoder_costs_two_passes_and_a_frozen_encoder_one():
    parameters = abstract_parameters(MODEL)
    costs = []
    for patterns in (("connector/**",), ("connector/**", "decoder/**"), ("**",)):
        trainable = split(parameters, patterns)[0]
        costs.append(step_cost(MODEL, parameters, flatten_dict(trainable, sep="/")))
    align, instruct, everything = costs
    assert instruct.per_token == pytest.approx(1.5 * align.per_token)
    assert instruct.per_image == align.per_image
    assert everything.per_image > 2 * instruct.per_image
    decoder = MODEL.decoder
    kernels = decoder.layers * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32) + 16 * 32
    assert instruct.per_token == 6 * kernels


def test_peaks_are_known_for_accelerators_and_not_for_cpus():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("cpu") is None
