"""Lets the TPU compiler run where there is no TPU; imports nothing, for it must come before JAX."""

import os

_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Keeps libtpu from looking for a TPU that this machine does not have, and two plans from excluding each other."""


def prepare_environment() -> None:
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
