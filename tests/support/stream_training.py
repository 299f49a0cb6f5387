"""One process of a run that trains a tiny model on a stream of tars: RUN SHARDS KEYS STEPS DATA,FSDP,TENSOR.

The keys of the records of each training batch are appended to the file KEYS-<number of the process>.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from data_pipelines.loader import Loader, Share
from data_pipelines.loading.loaded_batch import LoadedBatch
from data_pipelines.preparation import Preparation
from data_pipelines.quota import Tally
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.transforms.image_error import ImageError
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.processes import start_processes
from mllm_jax.parallel.watch import leaving_at_once, watching_others
from mllm_jax.training.ingredients import FeedRequest
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.schedules import ScheduleConfig
from mllm_jax.training.signals import STOPPED_EXIT_CODE
from mllm_jax.training.stages import StageConfig, ValidationConfig
from tests.support.tiny_stream import BAD_IMAGE, IMAGE_TOKENS, render, stream_config
from tests.support.tiny_training import MODEL, tiny_run

IMAGE_SIZE = (6, 2)
LOST_SECONDS = 20
SKIP_QUOTA = 0.05
"""The shards of the test hold some bad images, about one in forty."""


def decode(data: bytes) -> np.ndarray:
    """Pixels that depend on every byte."""
    if data.startswith(BAD_IMAGE):
        raise ImageError("corrupt", "it says so itself")
    return np.frombuffer(hashlib.sha512(data).digest()[:36], np.uint8).reshape(*IMAGE_SIZE, 3)


def stream_model():
    """The tiny model for tokens that are letters and images that take three tokens."""
    encoder = MODEL.encoder.model_copy(update={"image_size": IMAGE_SIZE, "patch_size": 2})
    decoder = MODEL.decoder.model_copy(update={"vocab_size": 160})
    return MODEL.model_copy(update={"encoder": encoder, "decoder": decoder})


class RecordedFeed:
    """A loader that notes the keys of what it hands out."""

    def __init__(self, shards: str, keys: Path, request: FeedRequest):
        stage = request.stage
        self._keys = keys if request.split == "train" else None
        self._loader = Loader(
            stream_config(
                lanes=4, skip_quota=SKIP_QUOTA, row_length=stage.row_length, images_per_row=stage.images_per_row
            ),
            {"pairs": WebDatasetConfig(shards=shards)},
            Preparation(render, decode, IMAGE_TOKENS, IMAGE_SIZE),
            stage.rows,
            share=Share(request.sharding),
            position=request.position,
        )

    def __iter__(self) -> Iterator[LoadedBatch]:
        return self

    def __next__(self) -> LoadedBatch:
        loaded = next(self._loader)
        if self._keys is not None:
            with self._keys.open("a", encoding="utf-8") as file:
                file.write(json.dumps(loaded.report.keys) + "\n")
        return loaded

    def check_quota(self, tallies: Iterable[Tally]) -> None:
        self._loader.check_quota(tallies)

    def close(self) -> None:
        self._loader.close()


def stage_of(steps: int) -> StageConfig:
    return StageConfig(
        name="pretrain",
        mixture={"pairs": 1.0},
        rows=8,
        row_length=64,
        images_per_row=3,
        steps=steps,
        trainable=("connector/**", "decoder/**"),
        validation=ValidationConfig(mixture={"pairs": 1.0}, batches=1, every=4),
        schedule=ScheduleConfig(peak=1e-2, warmup=0.0),
    )


def main(folder: str, shards: str, keys: str, steps: str, mesh: str) -> int:
    start_processes(timeout_seconds=60, lost_seconds=LOST_SECONDS)
    with watching_others(), leaving_at_once():
        data, fsdp, tensor = map(int, mesh.split(","))
        run = tiny_run(
            Path(folder),
            make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor)),
            console=Console() if jax.process_index() == 0 else None,
            feed=lambda request: RecordedFeed(shards, Path(f"{keys}-{jax.process_index()}"), request),
            model=stream_model(),
        )
        outcome = run_stages([stage_of(int(steps))], run)
    return STOPPED_EXIT_CODE if outcome is Outcome.STOPPED else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
