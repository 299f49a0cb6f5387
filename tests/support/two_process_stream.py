"""One process of a data stream; run as a script by tests: INDEX PROCESSES PORT BATCHES FOLDER OUT [POSITION]."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.loader import Loader, Share
from data_pipelines.positions import gather_positions
from data_pipelines.sources.webdataset import WebDatasetConfig
from tests.support.tiny_stream import PREPARATION, decode, stream_config

PREPARED = replace(PREPARATION, augment=lambda data, seed: decode(data + seed.to_bytes(8)))
"""Shows in the pixels how they would be changed at random."""


def main(index: int, processes: int, port: str, batches: int, folder: str, out: str, saved: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", processes, index)
    # Interleaved, so that the lanes of a process do not follow one another.
    devices = np.array(jax.devices()).reshape(2, -1).T.reshape(-1)
    sharding = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
    sources = {"pairs": WebDatasetConfig(shards=f"{folder}/*.tar")}
    position = json.loads(Path(saved).read_text())["position"] if saved else None
    digests = []
    with Loader(stream_config(lanes=4), sources, PREPARED, 8, share=Share(sharding), position=position) as loader:
        for _ in range(batches):
            loaded = next(loader)
            arrays = multihost_utils.process_allgather(loaded.batch, tiled=True)
            digests.append(
                hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in jax.tree.leaves(arrays))).hexdigest()
            )
        gathered = gather_positions(loaded.position)
    if index == 0:
        Path(out).write_text(json.dumps({"batches": digests, "position": gathered}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:8])
