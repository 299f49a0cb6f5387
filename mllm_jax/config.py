"""The run file as a value: assembled from the config classes that the rooms own, validated before anything starts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from data_pipelines.config_class import Config
from data_pipelines.draws import portions_of
from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.mixture import MixtureConfig
from data_pipelines.sources.choice import HOLDS_PAIRS, SourceConfig
from data_pipelines.storage import Storage, StorageConfig
from data_pipelines.stream_config import LaneConfig, StreamConfig
from data_pipelines.suggestion import suggest
from data_pipelines.transforms.templates import TEMPLATES
from mllm_jax.checkpoint.checkpointer import CheckpointConfig
from mllm_jax.config_errors import sentences
from mllm_jax.interop.hub import local_folder
from mllm_jax.model_choice import ModelChoice, complete_architectures
from mllm_jax.models.connectors.choice import instruction_tokens
from mllm_jax.parallel.mesh import MeshConfig
from mllm_jax.parallel.processes import ProcessConfig
from mllm_jax.run_file import KeyPath, RunFileError, format_key, read_run_file
from mllm_jax.training.metrics import LoggingConfig
from mllm_jax.training.objectives.preference import PreferenceConfig
from mllm_jax.training.objectives.q_former import QFormerObjectiveConfig
from mllm_jax.training.stages import StageConfig


class DataConfig(LaneConfig, LoaderConfig):
    """Where records come from and how lanes draw from them; the same for every stage."""

    sources: dict[str, SourceConfig] = Field(min_length=1)
    """The named sources that stages mix."""
    storage: StorageConfig = StorageConfig()
    """How shards are read from disks and remote stores."""

    @field_validator("sources")
    @classmethod
    def _nameable(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        taken = sorted(sources.keys() & MixtureConfig.model_fields.keys())
        if taken:
            raise ValueError(f"{' and '.join(taken)} means something else in a mixture; call the source otherwise")
        return sources

    @property
    def loader(self) -> LoaderConfig:
        """What works on the batches of every stage."""
        return LoaderConfig(**self.model_dump(include=set(LoaderConfig.model_fields)))

    def stream(self, mixture: MixtureConfig, row_length: int, images_per_row: int) -> StreamConfig:
        """The stream that a stage draws from these sources."""
        lanes = self.model_dump(include=set(LaneConfig.model_fields))
        return StreamConfig(**lanes, mixture=mixture, row_length=row_length, images_per_row=images_per_row)


class RunConfig(Config):
    """One run: what is trained, on what, in which stages, on which mesh."""

    output: str
    """The run directory; starting again with the same one goes on where the run stopped."""
    seed: int = 0
    """Seed of the initial parameters."""
    model: ModelChoice
    data: DataConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    parallel: MeshConfig = MeshConfig()
    processes: ProcessConfig = ProcessConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()


def stage_named(run: RunConfig, name: str | None) -> StageConfig:
    """A stage of a run by its name; None: the first.

    Raises:
        ValueError: there is none of that name.
    """
    stages = {stage.name: stage for stage in run.stages}
    if name is not None and name not in stages:
        raise ValueError(f"there is no stage {name!r}.{suggest(name, stages)} Stages: {', '.join(stages)}")
    return run.stages[0] if name is None else stages[name]


def load_run(path: str | Path, overrides: list[str] | tuple[str, ...] = (), *, check_paths: bool = True) -> RunConfig:
    """Reads, merges and validates a run file; architectures come back complete.

    Raises:
        RunFileError: every problem found, one line each, with file, line and key path.
    """
    raw = read_run_file(path, overrides)
    try:
        run = RunConfig.model_validate(raw.values)
    except ValidationError as error:
        raise RunFileError("\n".join(sentences(error, RunConfig, raw))) from None
    problems = [*_name_problems(run), *_pair_problems(run), *(_path_problems(run) if check_paths else ())]
    told = [f"{raw.origin(key)}: {format_key(key)}: {text}" for key, text in problems]
    try:
        model = complete_architectures(run.model, raw)
    except RunFileError as error:
        raise RunFileError("\n".join([str(error), *told])) from None
    if told:
        raise RunFileError("\n".join(told))
    return run.model_copy(update={"model": model})


def _name_problems(run: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    names = [stage.name for stage in run.stages]
    for index, stage in enumerate(run.stages):
        here: KeyPath = ("stages", index)
        if stage.name in names[:index]:
            yield (*here, "name"), f"an earlier stage is called {stage.name!r} too; names must differ"
        if stage.rows % run.data.lanes:
            yield (*here, "rows"), f"{stage.rows} rows do not divide over data.lanes = {run.data.lanes}"
        if run.model.tiling is not None and 0 < stage.images_per_row < run.model.tiling.most_slots:
            slots = f"an image takes up to {run.model.tiling.most_slots} slots by model.tiling"
            yield (*here, "images_per_row"), f"found {stage.images_per_row}, but {slots}; 0 is for text alone"
        if stage.augmentation is not None and run.model.tiling is not None:
            text = (
                "an image's tiles are laid out by its size before any pixel is read, so images that model.tiling cuts"
            )
            yield (*here, "augmentation"), f"{text} cannot be changed at random; leave out this or model.tiling"
        for part, mixture in stage.mixtures().items():
            for source in mixture.sources:
                if source not in run.data.sources:
                    known = ", ".join(run.data.sources)
                    text = (
                        f"there is no source {source!r}.{suggest(source, run.data.sources)} data.sources has: {known}"
                    )
                    yield (*here, *part, source), text
        if stage.template is not None and stage.template not in TEMPLATES:
            yield (*here, "template"), _no_template(stage.template)
    if (run.model.instruction_tokenizer is None) != (instruction_tokens(run.model.connector) == 0):
        reads = "reads instructions" if run.model.instruction_tokenizer is None else "reads no instructions"
        found = f"found {run.model.instruction_tokenizer!r}, but model.connector {reads}"
        yield ("model", "instruction_tokenizer"), f"{found}; give both this and model.connector.text, or neither"
    if run.model.chat_template not in TEMPLATES:
        yield ("model", "chat_template"), _no_template(run.model.chat_template)


def _pair_problems(run: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    """Sources without pairs for objectives that compare answers."""
    for index, stage in enumerate(run.stages):
        mixtures = stage.mixtures() if isinstance(stage.objective, PreferenceConfig) else {}
        for part, mixture in mixtures.items():
            for name in mixture.drawn:
                source = run.data.sources.get(name)
                if source is not None and not isinstance(source, HOLDS_PAIRS):
                    found = f"found a source of kind {source.kind}, but objective preference compares two answers"
                    yield ("stages", index, *part, name), f"{found}; draw from preference_json, or records of it"


def _no_template(name: str) -> str:
    return f"there is no chat template {name!r}.{suggest(name, TEMPLATES)} Templates: {', '.join(sorted(TEMPLATES))}"


def _path_problems(run: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    for name in ("weights", "tokenizer", "instruction_tokenizer", "connector_weights"):
        path = getattr(run.model, name)
        if path is not None:
            try:
                local_folder(path)
            except FileNotFoundError as error:
                yield ("model", name), str(error)
    for index, stage in enumerate(run.stages):
        if isinstance(stage.objective, QFormerObjectiveConfig):
            here: KeyPath = ("stages", index, "objective")
            named = {(*here, "weights"): stage.objective.weights}
            if stage.objective.text is not None:
                named |= {(*here, "text", "tokenizer"): stage.objective.text.tokenizer}
            for key, path in named.items():
                try:
                    local_folder(path) if path is not None else None
                except FileNotFoundError as error:
                    yield key, str(error)
    storage = Storage(run.data.storage)
    used = {source for stage in run.stages for mixture in stage.mixtures().values() for source in mixture.sources}
    opened = {}
    for name, source in run.data.sources.items():
        if name in used:
            try:
                opened[name] = source.open(storage)
            except (OSError, ValueError) as error:
                yield ("data", "sources", name), str(error)
    for index, stage in enumerate(run.stages):
        for part, mixture in stage.mixtures().items():
            if mixture.drawn.keys() <= opened.keys():
                try:
                    portions_of(mixture, opened)
                except ValueError as error:
                    yield ("stages", index, *part), str(error)


def resolved_yaml(run: RunConfig) -> str:
    """The complete run as YAML that `load_run` reads again."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def run_schema() -> str:
    """The JSON schema of run files, for editors."""
    schema: dict[str, Any] = RunConfig.model_json_schema()
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Another run file whose values this one changes.",
    }
    schema["properties"]["variants"] = {
        "type": "object",
        "description": "By a name, changes of this run file (which may extend another file).",
    }
    schema["properties"]["variant"] = {
        "type": "string",
        "description": "The variant that is run; none: the file itself.",
    }
    schema["required"] = []
    return json.dumps(schema, indent=2)
