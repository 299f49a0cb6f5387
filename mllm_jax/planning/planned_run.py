"""The stages of a run file on a machine that need not be there, with data, tokenizers and weights that need not be
either."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, AxisType

from mllm_jax.added_tokens import added_tokens
from mllm_jax.config import RunConfig, load_run
from mllm_jax.data_side import data_side
from mllm_jax.interop.hub import local_folder
from mllm_jax.model_choice import multimodal_config
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.parallel.mesh import MeshConfig, axes_of, make_mesh, mesh_shape
from mllm_jax.planning.topology import Topology, devices_of
from mllm_jax.run_file import read_run_file
from mllm_jax.training.ingredients import Ingredients
from mllm_jax.training.objectives.q_former import QFormerObjectiveConfig
from mllm_jax.training.plan import Run, Stage, plan_stages


@dataclass(frozen=True)
class PlannedRun:
    """What `mllm train` would run on a topology, with nothing allocated."""

    config: RunConfig
    topology: Topology
    run: Run
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]
    """What was not there, and what the plan takes in its place."""


class RunOnPaper(NamedTuple):
    config: RunConfig
    model: MultimodalConfig
    notes: tuple[str, ...]


def planned_run(path: str, overrides: list[str], topology: Topology) -> PlannedRun:
    """
    Raises:
        ValueError: a run file that cannot start, an architecture that neither a preset nor a folder says, a mesh or
            a batch that does not fit the topology.
    """
    paper = read_on_paper(path, overrides)
    return on_topology(paper, topology)


def read_on_paper(path: str, overrides: list[str]) -> RunOnPaper:
    """The run file, and the model's architecture, as far as they need not be guessed.

    Raises:
        ValueError: as `planned_run`.
    """
    missing = dict(_missing_weights(path, overrides))
    config = load_run(path, [*overrides, *(f"{key}=null" for key in missing)], check_paths=False)
    model, notes = _model(config)
    found = [
        f"{key}: there is no {weights}; the architecture is that of the preset" for key, weights in missing.items()
    ]
    return RunOnPaper(config, model, (*found, *notes))


def on_topology(paper: RunOnPaper, topology: Topology) -> PlannedRun:
    """The stages with the shardings that they have on a topology."""
    config = paper.config
    run = Run(
        folder=Path(config.output),
        ingredients=Ingredients(
            model=paper.model,
            precision=config.model.precision,
            initial_parameters=_never,
            open_feed=_never,
            token_ids=lambda text: (0,),
            seed=config.seed,
        ),
        mesh=_mesh(config.parallel, topology),
        checkpoint=config.checkpoint,
        logging=config.logging,
        console=None,
    )
    return PlannedRun(config, topology, run, tuple(plan_stages(config.stages, run)), paper.notes)


def _never(request: Any) -> Any:
    raise AssertionError("a plan makes no parameters and opens no data")


def _mesh(config: MeshConfig, topology: Topology) -> Any:
    """Over the topology's devices; one without devices where nothing compiles for them here, which has shapes too."""
    if topology.chip is None or topology.is_tpu:
        return make_mesh(config, devices_of(topology))
    axes = axes_of(config)
    return AbstractMesh(mesh_shape(config, topology.size), axes, axis_types=(AxisType.Auto,) * len(axes))


def _missing_weights(path: str, overrides: list[str]) -> Iterator[tuple[str, str]]:
    """Keys of encoders and decoders whose folders are not there, and a preset says the architecture too."""
    model = read_run_file(path, overrides).values.get("model")
    parts = model if isinstance(model, dict) else {}
    for name in ("encoder", "decoder"):
        yield from _missing_of(parts.get(name), f"model.{name}")
    fused = parts["encoder"].get("fused_with", ()) if isinstance(parts.get("encoder"), dict) else ()
    for index, part in enumerate(fused):
        yield from _missing_of(part, f"model.encoder.fused_with.{index}")


def _missing_of(part: Any, key: str) -> Iterator[tuple[str, str]]:
    weights = part.get("weights") if isinstance(part, dict) else None
    if isinstance(weights, str) and part.get("preset") is not None and not _is_there(weights):
        yield f"{key}.weights", weights


def _is_there(folder_or_id: str) -> bool:
    try:
        return local_folder(folder_or_id).exists()
    except FileNotFoundError:
        return False


def _model(config: RunConfig) -> tuple[MultimodalConfig, tuple[str, ...]]:
    """The architecture with as many embeddings as the tokenizer asks for, or as it most likely will."""
    choice = config.model
    named = choice.tokenizer or choice.weights or choice.decoder.weights
    others = [choice.instruction_tokenizer, *_text_tokenizers(config)]
    absent = [each for each in (named, *others) if each is not None and not _is_there(each)]
    if named is not None and not absent:
        return data_side(config).model, ()
    added = added_tokens(config)
    entries = int(choice.decoder.architecture["vocab_size"])
    model = multimodal_config(choice, entries + len(added))
    why = f"there is no {' and no '.join(absent)}" if absent else "model.tokenizer is null"
    note = (
        f"{why}: planned with the decoder's {entries:,} tokens and {len(added)} of this project "
        f"({' '.join(added)}), for which the embedding has {model.decoder.vocab_size:,} rows"
    )
    return model, (note,)


def _text_tokenizers(config: RunConfig) -> list[str]:
    """Those that objectives read for themselves."""
    objectives = (stage.objective for stage in config.stages)
    texts = [each.text for each in objectives if isinstance(each, QFormerObjectiveConfig)]
    return [text.tokenizer for text in texts if text is not None]
