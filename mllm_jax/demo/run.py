"""The demo as a visible sequence: data, tokenizer, training, evaluation, export, sample answers."""

import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from data_pipelines.record import ByteRange
from mllm_jax.assemble import train
from mllm_jax.config import load_run
from mllm_jax.demo.dataset import DatasetConfig, DemoData, scenes, write_dataset
from mllm_jax.demo.samples import SampleAnswer, draw_sample
from mllm_jax.demo.tokenizer_text import write_text_tokenizer, write_tokenizer
from mllm_jax.evaluation.evaluate import Asked, Evaluation, EvaluationConfig, evaluate
from mllm_jax.evaluation.report import scores_table, write_report
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import LoadedModel, load_model

SAMPLES = 6
"""Held-out scenes that are drawn with all their answers."""


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Where the demo keeps everything."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer.model"

    @property
    def text_tokenizer(self) -> Path:
        """The same for texts that a Q-Former reads; no part of the demo, but of recipes on its scenes."""
        return self.root / "text_tokenizer"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def exported(self) -> Path:
        return self.root / "exported"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def summary(self) -> Path:
        """What the demo printed at its end; written last."""
        return self.root / "summary.txt"


def run_demo(output: Path, run_file: Path, overrides: tuple[str, ...] = (), config: DatasetConfig | None = None) -> int:
    """Runs what is left of the demo; returns the process's exit code.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: a run file that cannot be run.
    """
    console, folder = Console(), DemoFolder(output)
    if folder.summary.is_file():
        console.print(folder.summary.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        console.print(f"The demo is done. To start afresh, remove {output} (make demo-clean) and run it again.")
        return 0
    began = time.monotonic()
    config = config or DatasetConfig()
    console.rule(f"1. data: {config.pairs} captioned scenes, {config.chats} conversations")
    data = write_dataset(folder.data, config)
    _write_tokenizers(folder, config)
    console.rule("2. training, stage by stage")
    stopped = train(load_run(run_file, (*_places(folder, data), *overrides)))
    if stopped:
        return stopped
    console.rule("3. evaluation on held-out digits, and export")
    loaded = load_model(folder.run)
    evaluation = evaluate(
        loaded,
        str(data.questions),
        EvaluationConfig(rows=64, max_new_tokens=32, loss=False),
        images=str(data.images_held_out),
    )
    write_report(evaluation, folder.scores)
    _export(loaded, folder)
    pictures = _draw_samples(evaluation, data, folder)
    _finish(console, folder, evaluation, pictures, time.monotonic() - began)
    return 0


def _write_tokenizers(folder: DemoFolder, config: DatasetConfig) -> None:
    if not folder.tokenizer.is_file():
        shown = scenes(config, "train", "chats", min(config.chats, 1000))
        write_tokenizer(folder.tokenizer, shown, np.random.default_rng(config.seed))
    write_text_tokenizer(folder.text_tokenizer, folder.tokenizer)


def _places(folder: DemoFolder, data: DemoData) -> tuple[str, ...]:
    """Overrides of the run file's paths."""
    sources = "data.sources"
    return (
        f"output={folder.run}",
        f"model.tokenizer={folder.tokenizer}",
        f"{sources}.pairs.shards={data.pairs}/*.tar",
        f"{sources}.pairs_held_out.shards={data.pairs_held_out}/*.tar",
        f"{sources}.chats.files={data.chats}",
        f"{sources}.chats.image_shards={data.chat_images}",
        f"{sources}.chats_held_out.files={data.chats_held_out}",
        f"{sources}.chats_held_out.images={data.images_held_out}",
    )


def _export(loaded: LoadedModel, folder: DemoFolder) -> None:
    if folder.exported.exists():
        shutil.rmtree(folder.exported)
    export(loaded, folder.exported)


def _draw_samples(evaluation: Evaluation, data: DemoData, folder: DemoFolder) -> list[Path]:
    by_image: dict[str, list[Asked]] = defaultdict(list)
    for asked in evaluation.asked:
        source = asked.question.images[0].source
        assert isinstance(source, ByteRange), "the demo's held-out images are files"
        by_image[source.path].append(asked)
    telling = (image for image, answers in by_image.items() if len(answers) >= 5)
    folder.samples.mkdir(parents=True, exist_ok=True)
    pictures = []
    for image in islice(telling, SAMPLES):
        said = [
            SampleAnswer(asked.question.text, asked.answer.text, asked.question.reference, asked.result.score.correct)
            for asked in by_image[image]
        ]
        pictures.append(folder.samples / Path(image).name)
        with Image.open(image) as scene:
            draw_sample(scene, said).save(pictures[-1])
    return pictures


def _finish(console: Console, folder: DemoFolder, evaluation: Evaluation, pictures: list[Path], seconds: float) -> None:
    """Prints the summary and keeps it for the next start."""
    last = pictures[0].name if pictures else "000000.png"
    lines = [
        f"{seconds / 60:.1f} minutes. Asked for: 90 % on digit and colour, 80 % on count.",
        f"run         {folder.run}",
        f"exported    {folder.exported}   (transformers.LlavaForConditionalGeneration)",
        f"answers     {folder.scores / 'answers.jsonl'}",
        f"samples     {', '.join(str(path) for path in pictures)}",
        "next        .venv/bin/mllm generate --model "
        f'{folder.exported} --image {folder.data / "images_held_out" / last} --prompt "How many digits are there?"',
    ]
    with console.capture() as capture:
        console.print(scores_table(evaluation))
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(capture.get(), markup=False, highlight=False, soft_wrap=True)
    plain = Console(width=120, color_system=None)
    with plain.capture() as capture:
        plain.print(scores_table(evaluation))
        for line in lines:
            plain.print(line, markup=False, highlight=False, soft_wrap=True)
    folder.summary.write_text(capture.get(), encoding="utf-8")
