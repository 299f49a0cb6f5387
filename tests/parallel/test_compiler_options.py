from types import SimpleNamespace

import numpy as np

from mllm_jax.parallel.compiler_options import COMPILER_OPTIONS, compiler_options


def mesh_of(platform):
    return SimpleNamespace(devices=np.array([[SimpleNamespace(platform=platform)]]))


def test_options_are_those_of_the_devices_of_the_mesh():
    assert compiler_options(mesh_of("tpu")) == dict(COMPILER_OPTIONS["tpu"])
    assert compiler_options(mesh_of("cpu")) == {}
