"""Which kernel attends where, and why."""

import jax.numpy as jnp
import pytest

from mllm_jax.models.kernel_choices import kernel_choices
from mllm_jax.models.layers.attention_kernels import AttentionConfig, Heads, choose_kernel
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.training.summary import kernel_table
from tests.support.tiny_training import MODEL

AUTO, HEADS = AttentionConfig(), Heads(64, jnp.bfloat16)


def test_the_platform_chooses():
    assert [choose_kernel(AUTO, HEADS, on).kernel for on in ("cpu", "tpu", "gpu")] == ["xla", "splash", "cudnn"]


@pytest.mark.parametrize(
    ("heads", "problem"),
    [
        (Heads(64, jnp.float32), "computes in bfloat16, not in float32"),
        (Heads(256, jnp.bfloat16), "256 wide"),
        (Heads(64, jnp.bfloat16, soft_capped=True), "no soft cap"),
    ],
)
def test_what_cudnn_cannot_do_is_done_by_xla_and_said(heads, problem):
    kernel, reason = choose_kernel(AUTO, heads, "gpu")
    assert kernel == "xla"
    assert problem in reason
    with pytest.raises(ValueError, match=problem):
        choose_kernel(AttentionConfig(kernel="cudnn"), heads, "gpu")


def test_a_kernel_for_other_devices_is_refused():
    with pytest.raises(ValueError, match="devices are no GPUs, but tpu"):
        choose_kernel(AttentionConfig(kernel="cudnn"), HEADS, "tpu")


def test_every_part_is_listed_with_its_kernel_and_its_reason():
    splash = StackConfig(remat="dots", attention=AttentionConfig(kernel="splash"))
    model = MODEL.model_copy(update={"encoder": MODEL.encoder.model_copy(update={"stack": splash})})
    encoder, decoder = kernel_choices(model, jnp.bfloat16, "cpu", virtual_tokens=False)
    assert (encoder.part, encoder.choice.kernel, encoder.remat) == ("encoder", "splash", "dots")
    assert encoder.choice.reason == "as configured; interpreted on cpu, slowly"
    assert (decoder.part, decoder.choice.kernel, decoder.choice.reason) == ("decoder", "xla", "on a CPU")
    assert kernel_table([encoder, decoder]).row_count == 2


def test_virtual_tokens_are_read_by_xla():
    decoder = kernel_choices(MODEL, jnp.bfloat16, "tpu", virtual_tokens=True)[-1]
    assert (decoder.choice.kernel, decoder.choice.reason) == ("xla", "virtual tokens stand before every segment")
