"""What the compiler is told on each platform, beside the program."""

from collections.abc import Mapping

from jax.sharding import Mesh

COMPILER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "tpu": {
        # Gradients are summed over devices while other layers compute; without these, every layer waits for its own.
        "xla_enable_async_all_reduce": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    },
}
"""By JAX's name of a platform, options of XLA that a step is compiled with."""


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """The options for the devices of a mesh; they need not be here."""
    return dict(COMPILER_OPTIONS.get(mesh.devices.flat[0].platform, {}))
