"""What a stage's first batches hold, read back from the arrays that training would get; nothing is trained."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from data_pipelines.batch import Batch
from data_pipelines.mixture import MixtureConfig
from data_pipelines.preparation import Preparation
from data_pipelines.showing.page import page_of
from data_pipelines.showing.reading import Reading, shown_rows
from data_pipelines.showing.rows import Shown, ShownRow, counted
from data_pipelines.showing.terminal import print_rows
from data_pipelines.showing.token_texts import TokenTexts
from data_pipelines.storage import Storage
from mllm_jax.config import RunConfig, stage_named
from mllm_jax.data_side import DataSide, data_side
from mllm_jax.models.layers.grid_positions import grid_positions
from mllm_jax.models.multimodal import token_grid
from mllm_jax.training.ingredients import FeedRequest
from mllm_jax.training.stages import StageConfig


def shown_stage(config: RunConfig, stage_name: str | None, rows: int) -> Shown:
    """The first rows of a stage's first batches; no weights are read.

    Args:
        config: of the run.
        stage_name: None: the first stage.
        rows: how many.

    Raises:
        ValueError: there is no such stage; or as training would raise before its first step.
    """
    if rows < 1:
        raise ValueError(f"--rows: found {rows}, expected at least 1")
    stage = stage_named(config, stage_name)
    data = data_side(config)
    skipped: Counter[str] = Counter()
    shown = tuple(islice(_rows(data, stage, rows, skipped), rows))
    return Shown(config.output, stage.name, _facts(config, data, stage), shown, dict(skipped.most_common()))


def put_out(shown: Shown, page: str | None, *, terminal: bool) -> None:
    """Prints rows, and writes them to a page."""
    if terminal:
        print_rows(shown, Console())
    if page is not None:
        Path(page).write_text(page_of(shown), encoding="utf-8")
        print(f"wrote {page}: {counted(len(shown.rows), 'row')} of stage {shown.stage}")


def _rows(data: DataSide, stage: StageConfig, rows: int, skipped: Counter[str]) -> Iterator[ShownRow]:
    """The stage's rows from its first batch on; what is skipped on the way is counted."""
    lanes = data.config.data.lanes
    needed = min(lanes, -(-rows * lanes // stage.rows))
    reading = _reading(data, stage, data.preparation(stage, Storage(data.config.data.storage)))
    request = FeedRequest(stage, "train", sharding=None, position=None, lanes=range(needed))
    # Processes do not tell what lies where, and a look at some rows is not worth to start them.
    work = data.config.data.loader.model_copy(update={"processes": 0})
    with data.open_feed(request, work=work) as feed:
        for number, loaded in enumerate(feed, start=1):
            skipped.update(loaded.report.skipped)
            assert loaded.records is not None
            yield from shown_rows(loaded.batch, loaded.records, reading, number)


def _mixture(mixture: MixtureConfig) -> str:
    """`pairs 2, chats 1 for 1.5 epochs, exhausted stop`."""
    told = []
    for name, share in mixture.sources.items():
        weight = "" if share.weight is None else f" {share.weight:g}"
        told.append(f"{name}{weight}" + (f" for {share.epochs:g} epochs" if share.epochs else ""))
    told += [f"{key} {value}" for key, value in mixture.model_dump(include=set(MixtureConfig.model_fields)).items()]
    return ", ".join(told)


def _reading(data: DataSide, stage: StageConfig, preparation: Preparation) -> Reading:
    read_by = data.captions[stage.name].tokenizer if stage.name in data.captions else data.tokenizer
    mixture = data.config.data.stream(stage.mixture, stage.row_length, stage.images_per_row)
    return Reading(
        token_texts=TokenTexts(read_by),
        features=preparation.image_tokens,
        sources=mixture.names,
        instruction_texts=TokenTexts(data.instructions.tokenizer) if data.instructions else None,
        whole_slot=(lambda slots: 0) if preparation.tiled is None else preparation.tiled.config.whole_slot,
        turning=None if data.model.decoder.rotary_sections is None else _turning(token_grid(data.model)),
    )


def _turning(grid: tuple[int, int]) -> Callable[[Batch], np.ndarray]:
    """The positions of a decoder that turns its heads by an image's grid: i32[B, T, 3]."""
    # An accelerator may be busy with a training of its own, and no other process may touch it.
    jax.config.update("jax_platforms", "cpu")
    return lambda batch: np.asarray(grid_positions(batch.positions, batch.image_index, grid))


def _facts(config: RunConfig, data: DataSide, stage: StageConfig) -> dict[str, str]:
    """What the run file says of the stage's rows, by names to show."""
    model = config.model
    transform, tiling, virtual = model.image_transform, model.tiling, stage.virtual_tokens
    size = "x".join(map(str, transform["size"]))
    template = stage.template or model.chat_template
    facts = {
        "template": "none: texts beside images" if stage.name in data.captions else template,
        "row length": f"{stage.row_length} tokens",
        "images a row": str(stage.images_per_row),
        "rows a batch": str(stage.rows),
        "mixture": _mixture(stage.mixture),
        "objective": stage.objective.kind,
        "images": f"{size} pixels, {transform['mode']}"
        + (f", tiling {tiling.kind}" if tiling else "")
        + (", changed at random" if stage.augmentation else ""),
    }
    if virtual is not None:
        facts["virtual tokens"] = f"{virtual[1].count} before every segment, which are no part of a row"
    return facts
