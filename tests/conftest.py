"""Eight simulated CPU devices, and quick compilation; the flags must be set before anything imports jax."""

import os

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests compile far more than they compute: without the compiler's optimisations they take half the time.
    "--xla_backend_optimization_level=0",
)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
