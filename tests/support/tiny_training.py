"""A tiny model and a deterministic stream for tests of training; run as a script it is a run."""

import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from data_pipelines.batch import Batch
from data_pipelines.loading.loaded_batch import BatchReport, LoadedBatch
from data_pipelines.positions import LanePositions
from data_pipelines.quota import Tally
from mllm_jax.checkpoint.checkpointer import CheckpointConfig
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.precision import PrecisionConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.vit import FeatureConfig, ViTConfig
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.ingredients import FeedRequest, Ingredients
from mllm_jax.training.metrics import LoggingConfig
from mllm_jax.training.plan import Run
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.schedules import ScheduleConfig
from mllm_jax.training.signals import STOPPED_EXIT_CODE
from mllm_jax.training.stages import StageConfig, ValidationConfig

MODEL = MultimodalConfig(
    encoder=ViTConfig(
        image_size=(8, 8),
        patch_size=4,
        width=16,
        layers=2,
        heads=2,
        feed_forward_width=16,
        class_token=False,
        features=FeatureConfig(layer=-1),
    ),
    connector=MLPConfig(),
    decoder=DecoderConfig(
        vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, head_width=4, feed_forward_width=32, max_positions=64
    ),
)
FLOAT32 = PrecisionConfig(compute="float32")
IMAGE_TOKENS = image_tokens(MODEL)


def tiny_batch(seed: int, rows: int = 8, length: int = 16, slots: int = 1) -> Batch:
    """Rows of two segments, the first with an image, and some padding; supervised here and there."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, MODEL.decoder.vocab_size, (rows, length), np.int32)
    cut, end = length // 2, length - 2
    place = np.arange(length)
    segment_ids = np.broadcast_to(np.where(place < cut, 1, np.where(place < end, 2, 0)), (rows, length))
    positions = np.broadcast_to(np.where(place < cut, place, np.where(place < end, place - cut, 0)), (rows, length))
    image_index = np.full((rows, length), -1)
    image_index[:, 1 : 1 + IMAGE_TOKENS] = np.arange(IMAGE_TOKENS)
    supervised = (random.random((rows, length)) < 0.4) & (segment_ids > 0) & (image_index < 0)
    return Batch(
        tokens=tokens,
        targets=np.where(segment_ids > 0, np.roll(tokens, -1, axis=1), 0).astype(np.int32),
        loss_weights=supervised.astype(np.float32),
        segment_ids=segment_ids.astype(np.int32),
        positions=positions.astype(np.int32),
        images=random.integers(0, 256, (rows, slots, 8, 8, 3), np.uint8),
        image_mask=np.ones((rows, slots), np.bool_),
        image_index=image_index.astype(np.int32),
        answer_mask=np.roll(supervised, 1, axis=1),
    )


class TinyFeed:
    """Batch `n` depends on `n` alone."""

    def __init__(self, request: FeedRequest):
        self._request = request
        lanes = {} if request.position is None else LanePositions.from_json(request.position).lanes
        self._next = lanes[0]["next"] if lanes else 0

    def __iter__(self) -> Iterator[LoadedBatch]:
        return self

    def __next__(self) -> LoadedBatch:
        stage, offset = self._request.stage, 1000 if self._request.split == "validation" else 0
        host = tiny_batch(self._next + offset, stage.rows, stage.row_length, stage.images_per_row)
        batch = jax.tree.map(
            lambda leaf: jax.make_array_from_callback(leaf.shape, self._request.sharding, lambda at: leaf[at]), host
        )
        self._next += 1
        report = BatchReport(stage.rows, stage.rows, {}, 0.0, 0.4, 1.0, ())
        return LoadedBatch(batch, LanePositions({"stream": "tiny"}, {0: {"next": self._next}}), report)

    def check_quota(self, tallies: Iterable[Tally]) -> None:
        pass

    def close(self) -> None:
        pass


def initial_parameters(abstract: ParameterTree) -> ParameterTree:
    """Parameters that depend on their paths alone, placed as `abstract` says; nothing is compiled for them."""
    leaves = {path: _initial(path, leaf) for path, leaf in flatten_dict(abstract, sep="/").items()}
    return unflatten_dict(leaves, sep="/")


def _initial(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    random = np.random.default_rng(zlib.crc32(path.encode()))
    values = np.ones(leaf.shape) if path.endswith("scale") else 0.2 * random.standard_normal(leaf.shape)
    return jax.device_put(values.astype(leaf.dtype), leaf.sharding)


def tiny_stages(steps: int = 6) -> tuple[StageConfig, ...]:
    """Two stages: the connector, then the connector and the decoder."""
    align = StageConfig(
        name="align",
        mixture={"pairs": 1.0},
        validation=ValidationConfig(mixture={"held_out": 1.0}, batches=2, every=3),
        rows=8,
        row_length=16,
        images_per_row=1,
        steps=steps,
        trainable=("connector/**",),
        schedule=ScheduleConfig(peak=1e-2, warmup=0.0),
    )
    instruct = align.model_copy(
        update={"name": "instruct", "trainable": ("connector/**", "decoder/**"), "validation": None, "accumulate": 1}
    )
    return align, instruct


def tiny_run(
    folder: Path, mesh=None, precision: PrecisionConfig = FLOAT32, console=None, feed=TinyFeed, model=MODEL
) -> Run:
    """A run of the tiny model that logs every step and saves every second one."""
    return Run(
        folder=folder,
        ingredients=Ingredients(
            model=model,
            precision=precision,
            initial_parameters=initial_parameters,
            open_feed=feed,
            run={"output": str(folder)},
            tokenizer_files={"tokenizer.json": b"{}", "spiece.model": b"\xff\x00"},
        ),
        mesh=mesh or make_mesh(MeshConfig()),
        checkpoint=CheckpointConfig(every=2, keep=2),
        logging=LoggingConfig(every=1, tensorboard=False),
        console=console,
    )


def main(folder: str, steps: str, mesh: str, stages: str) -> int:
    """A run in one process; `mesh` is `data,fsdp,tensor`; only the first `stages` are run."""
    from rich.console import Console

    data, fsdp, tensor = map(int, mesh.split(","))
    run = tiny_run(Path(folder), make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor)), console=Console())
    outcome = run_stages(tiny_stages(int(steps))[: int(stages)], run)
    print(outcome.value, flush=True)
    return STOPPED_EXIT_CODE if outcome is Outcome.STOPPED else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
