"""Eight simulated CPU devices, and quick compilation; all of it must be set before anything imports jax."""

import atexit
import os
import shutil
import sys
import tempfile
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

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Tests that start a run several times compile the same programs again and again. The processes that share the
    # tests have this from the one that starts them.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go() -> Iterator[None]:
    """Those of a file: of all tests together they would take gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run the recipes' tiny twins in."""
    from tests.support.small_demo import write_small_demo

    folder = tmp_path_factory.mktemp("small")
    write_small_demo(folder / "demo")
    return folder


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
