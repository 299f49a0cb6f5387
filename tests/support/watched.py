"""One process of a group that only watches the others: it waits as its argument says."""

import sys
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from mllm_jax.parallel.processes import start_processes
from mllm_jax.parallel.watch import leaving_at_once, watching_others


def main(how: str) -> None:
    start_processes(timeout_seconds=60)
    with watching_others(), leaving_at_once():
        print("together", flush=True)
        if how == "waits":
            threading.Event().wait()
        if how == "computes":
            while True:
                multihost_utils.process_allgather(np.zeros(1))
        if how == "fails" and jax.process_index() == 1:
            raise ValueError("shard 7 is torn")
        multihost_utils.process_allgather(np.zeros(1))


if __name__ == "__main__":
    main(sys.argv[1])
