"""Eight simulated CPU devices, and quick compilation; the flags must be set before anything imports jax."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.proofs import Proof, Prover

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests compile far more than they compute: without the compiler's optimisations they take half the time.
    "--xla_backend_optimization_level=0",
)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go() -> Iterator[None]:
    """Those of a file: of all tests together they would take gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def proven(request: pytest.FixtureRequest, record_property) -> "Prover":
    """Records what the test proves; docs/families.md must say it already, but while it is being written."""
    from mllm_jax.interop.processor import model_config
    from tests.support.proofs import PROPERTY, Proven, Row, page_rows

    def record(family: Path | str, proof: "Proof", error: float | None = None) -> None:
        family = family if isinstance(family, str) else model_config(family)["model_type"]
        if not request.config.pluginmanager.has_plugin(PROPERTY):
            said = page_rows().get(family, Row(frozenset(), 0.0)).proofs
            assert proof in said, f"docs/families.md does not say that {family} is proven to {proof}: run make families"
        # Processes that share the tests hand on plain values only.
        record_property(PROPERTY, tuple(Proven(family, proof, error)))

    return record
