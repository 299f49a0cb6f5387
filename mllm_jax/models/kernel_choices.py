"""By which kernel each part of a model attends, why, and what its backward pass recomputes."""

from typing import Any, NamedTuple

from mllm_jax.models.connectors.choice import added_weights
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.connectors.prefix_adapter import PrefixAdapterConfig
from mllm_jax.models.decoder import attention_kernel
from mllm_jax.models.fused import encoder_parts
from mllm_jax.models.layers.attention_kernels import Choice
from mllm_jax.models.layers.stack import RematName
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.vit import encoder_kernel


class PartKernel(NamedTuple):
    """How the attention of one part is computed."""

    part: str
    choice: Choice
    remat: RematName | None
    """None: the part has no stack of its own."""


def kernel_choices(config: MultimodalConfig, dtype: Any, on: str, virtual_tokens: bool) -> list[PartKernel]:
    """The kernels of every part that attends.

    Args:
        config: of the model.
        dtype: compute format.
        on: the platform, as `attention_kernels.platform` names it.
        virtual_tokens: whether the decoder reads some before every segment.

    Raises:
        ValueError: a kernel that is asked for cannot do it.
    """
    found = [
        PartKernel("/".join(("encoder", *path)), encoder_kernel(part, dtype, on), part.stack.remat)
        for path, part in encoder_parts(config.encoder).items()
    ]
    connector_stack = getattr(config.connector, "stack", None)
    if connector_stack is not None:
        reason = "its queries read images, which are another sequence"
        found.append(PartKernel("connector", Choice("xla", reason), connector_stack.remat))
    decoder = config.decoder
    choice = Choice("xla", "virtual tokens stand before every segment") if virtual_tokens else None
    found.append(PartKernel("decoder", choice or attention_kernel(decoder, dtype, on), decoder.stack.remat))
    added = added_weights(config.connector)
    if isinstance(added, GatedCrossAttentionConfig):
        reason = "every token reads the images of its own that a mask tells"
        found.append(PartKernel("decoder, images", Choice("xla", reason), decoder.stack.remat))
    if isinstance(added, PrefixAdapterConfig):
        found.append(PartKernel("decoder, prefixes", Choice("xla", "they are another sequence"), decoder.stack.remat))
    return found
