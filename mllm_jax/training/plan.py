"""What a run will do: every stage with its optimizer and the shapes and shardings of its state; allocates nothing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from rich.console import Console

from mllm_jax.checkpoint.checkpointer import CheckpointConfig
from mllm_jax.checkpoint.layout import OBJECTIVE, stage_folder
from mllm_jax.models.adapters import adapter_paths, linear_maps, with_abstract_adapters
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.low_rank import Adapters, LowRankConfig
from mllm_jax.models.layers.quantised import KernelFormat
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import abstract_parameters, logical_axes, make_model
from mllm_jax.models.quantised_kernels import with_abstract_scales
from mllm_jax.models.virtual_tokens import (
    VIRTUAL_PATH,
    VirtualTokensConfig,
    virtual_paths,
    virtual_problem,
    with_abstract_virtual_tokens,
)
from mllm_jax.parallel.rules import (
    ROW_AXES,
    ParameterTree,
    parameter_shardings,
    row_ways,
)
from mllm_jax.training.flops import StepCost, step_cost
from mllm_jax.training.ingredients import Ingredients
from mllm_jax.training.metrics import LoggingConfig
from mllm_jax.training.objective import Objective, ObjectiveError, OwnParameters, StageModel
from mllm_jax.training.objectives.choice import make_objective
from mllm_jax.training.optimizers import make_optimizer
from mllm_jax.training.patterns import PatternError, choose
from mllm_jax.training.rate_groups import Rates, make_rates
from mllm_jax.training.stages import StageConfig
from mllm_jax.training.state import TrainState, abstract_state, merge, split
from mllm_jax.training.summary import GroupSummary, summarise


class StageError(ValueError):
    """Stages that cannot run; found before the first step of the first one."""


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    folder: Path
    ingredients: Ingredients
    mesh: Mesh
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    console: Console | None
    """None shows nothing; processes other than the first never show anything."""


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run."""

    config: StageConfig
    index: int
    folder: Path
    adapters: Adapters
    """Path of a linear map -> its low-rank adapter."""
    virtual_tokens: VirtualTokensConfig | None
    """What is learned before every segment."""
    axes: ParameterTree
    """Logical names of the axes of all parameters, those of the adapters and the objective too."""
    objective: Objective
    validation_objective: Objective
    optimizer: optax.GradientTransformation
    rates: Rates
    abstract: TrainState
    """Shapes, dtypes and shardings of its state."""

    def summary(self) -> list[GroupSummary]:
        """What trains and what does not."""
        return summarise(self.abstract, self.optimizer)

    def step_cost(self, model: MultimodalConfig) -> StepCost | None:
        """What a step asks of the devices; None where it is not one pass of the model, whose operations are counted.

        Args:
            model: the run's.
        """
        if not self.objective.one_pass:
            return None
        trainable = flatten_dict(self.abstract.trainable, sep="/")
        return step_cost(model, self.abstract_parameters(), trainable, self.objective.again)

    def abstract_adapters(self) -> ParameterTree:
        """Shapes of the parameters of its adapters alone."""
        abstract, own = flatten_dict(self.abstract.trainable, sep="/"), adapter_paths(self.adapters, self.axes)
        return unflatten_dict({path: abstract[path] for path in own}, sep="/")

    def abstract_parameters(self) -> ParameterTree:
        """All parameters with the dtypes that they have in this stage."""
        return merge(self.abstract.trainable, self.abstract.frozen)


def plan_stages(configs: Sequence[StageConfig], run: Run) -> list[Stage]:
    """Every stage with its abstract state; allocates nothing.

    Raises:
        StageError: names that repeat, patterns that match nothing, rows that do not divide or are
            longer than the decoder has learned positions for; all in one message.
        ShardingError: parameters that do not divide over the mesh.
    """
    model = run.ingredients.model
    parameters = abstract_parameters(model, run.ingredients.precision.parameter_dtype)
    axes = logical_axes(model)
    stages: list[Stage] = []
    problems: list[str] = []
    for index, config in enumerate(configs):
        place = f"stages.{index} ({config.name})"
        if config.name in {earlier.name for earlier in configs[:index]}:
            problems.append(f"{place}: name: another stage has this name")
        problems += [f"{place}: {problem}" for problem in _row_problems(config, run.mesh)]
        problems += [f"{place}: {problem}" for problem in _position_problems(config, model.decoder)]
        problems += [f"{place}: {problem}" for problem in _virtual_problems(config, run.ingredients, configs[:index])]
        try:
            stages.append(_plan_stage(index, config, run, parameters, axes))
        except (PatternError, ObjectiveError) as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise StageError("\n".join(problems))
    return stages


def _row_problems(config: StageConfig, mesh: Mesh) -> list[str]:
    ways = row_ways(mesh) * config.accumulate
    problems = []
    if config.rows % ways:
        split = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in ROW_AXES if axis in mesh.shape)
        nearest = max(round(config.rows / ways), 1) * ways
        problems.append(
            f"rows: {config.rows} rows cannot be split over {split} x accumulate {config.accumulate} = {ways}; use a "
            f"multiple of it, such as {nearest}"
        )
    problem = config.objective.row_problem(config.row_length)
    return problems if problem is None else [*problems, problem]


def _position_problems(config: StageConfig, decoder: DecoderConfig) -> list[str]:
    """A position outside a table has no embedding, and packing may give a whole row to one segment."""
    ahead = 0 if config.virtual_tokens is None else config.virtual_tokens[1].count
    fitting = config.row_length + ahead <= decoder.max_positions or not config.objective.segments_fill_rows
    if decoder.positions != "learned" or fitting:
        return []
    before = f", less the {ahead} virtual tokens before a segment" if ahead else ""
    return [
        f"row_length: found {config.row_length}, expected at most {decoder.max_positions - ahead}, for as many tokens "
        f"has the decoder learned positions (model.decoder.max_positions{before}); shorten the rows or take a decoder "
        "with rotary positions"
    ]


def _virtual_problems(config: StageConfig, ingredients: Ingredients, earlier: Sequence[StageConfig]) -> list[str]:
    """No weights of a plain model hold virtual tokens, so that a stage has none to begin with but its own."""
    problems = [
        f"adapters: stage {before.name!r} leaves virtual tokens (adapters.{before.virtual_tokens[0]}), which no later "
        "stage can begin with; leave them to the last stage"
        for before in earlier
        if before.virtual_tokens is not None
    ]
    if config.virtual_tokens is None:
        return problems
    name, virtual = config.virtual_tokens
    problem = virtual_problem(virtual, ingredients.model)
    if virtual.text is not None and not ingredients.token_ids(virtual.text):
        problem = f"text: the tokenizer makes no tokens of {virtual.text!r}"
    if problem is None and not config.objective.segments_fill_rows:
        problem = f"objective {config.objective.kind!r} reads texts that nothing stands before"
    return problems if problem is None else [*problems, f"adapters.{name}: {problem}"]


def _plan_stage(index: int, config: StageConfig, run: Run, parameters: ParameterTree, axes: ParameterTree) -> Stage:
    precision = run.ingredients.precision
    model = make_model(run.ingredients.model, precision.compute_dtype, precision.parameter_dtype)
    adapters = chosen_adapters(config.low_rank_adapters, linear_maps(axes))
    trainable = (*_trainable(config, parameters), *sorted(adapter_paths(adapters, axes)))
    _check_adapted(adapters, trainable)
    parameters, axes = with_abstract_adapters(adapters, parameters, axes)
    virtual = None if config.virtual_tokens is None else config.virtual_tokens[1]
    parameters, axes = with_abstract_virtual_tokens(virtual, run.ingredients.model.decoder, parameters, axes)
    trainable = (*trainable, *sorted(virtual_paths(axes)))
    staged = StageModel(model, adapters, parameters, axes, trainable)
    objective = make_objective(staged, config.objective)
    trainable = _read(trainable, adapters, objective, config)
    parameters, axes = _with_own(objective.own, parameters, axes)
    trainable = (*trainable, *(sorted(objective.own.paths()) if objective.own.train else ()))
    rates = make_rates(config.schedule, config.groups, config.steps, split(parameters, trainable)[0], axes)
    optimizer = make_optimizer(config.optimizer, rates, axes)
    return Stage(
        config=config,
        index=index,
        folder=stage_folder(run.folder, index, config.name),
        adapters=adapters,
        virtual_tokens=virtual,
        axes=axes,
        objective=objective,
        validation_objective=make_objective(staged, config.objective.plain()),
        optimizer=optimizer,
        rates=rates,
        abstract=_with_frozen_kernels(
            precision.frozen_kernels,
            abstract_state(
                parameters,
                parameter_shardings(axes, parameters, run.mesh),
                trainable,
                precision.frozen_dtype,
                optimizer,
                run.mesh,
                average=config.average is not None,
            ),
            axes,
            run.mesh,
        ),
    )


def _with_frozen_kernels(
    kernel_format: KernelFormat | None, abstract: TrainState, axes: ParameterTree, mesh: Mesh
) -> TrainState:
    """The state with the kernels of its frozen linear maps quantised, where a format is given."""
    if kernel_format is None:
        return abstract
    shapes, names = with_abstract_scales(kernel_format, abstract.frozen, axes)
    flat, places = flatten_dict(shapes, sep="/"), flatten_dict(names, sep="/")
    scales = unflatten_dict({path: flat[path] for path in places}, sep="/")
    placed = flatten_dict(parameter_shardings(names, scales, mesh), sep="/")
    flat |= {path: flat[path].update(sharding=sharding) for path, sharding in placed.items()}
    return abstract.replace(frozen=unflatten_dict(flat, sep="/"))


def _with_own(
    own: OwnParameters, parameters: ParameterTree, axes: ParameterTree
) -> tuple[ParameterTree, ParameterTree]:
    """Shapes and logical axes of a model's parameters and of those that an objective owns."""
    shapes = unflatten_dict({f"{OBJECTIVE}/{path}": shape for path, shape in own.shapes.items()}, sep="/")
    names = unflatten_dict({f"{OBJECTIVE}/{path}": each for path, each in own.axes.items()}, sep="/")
    return {**parameters, **shapes}, {**axes, **names}


def _trainable(config: StageConfig, parameters: ParameterTree) -> tuple[str, ...]:
    """Paths of what `trainable` chooses."""
    try:
        return tuple(sorted(choose(config.trainable, flatten_dict(parameters, sep="/"))))
    except PatternError as error:
        raise PatternError(f"trainable: {error}") from None


def _read(trainable: tuple[str, ...], adapters: Adapters, objective: Objective, config: StageConfig) -> tuple[str, ...]:
    """What trains of the chosen parameters: those that the losses depend on."""
    kind = config.objective.kind
    idle = sorted(path for path in adapters if not objective.reads(f"{path}/kernel"))
    if idle:
        raise PatternError(f"adapters: {idle[0]} has an adapter, but no loss of objective {kind!r} depends on it.")
    if config.virtual_tokens is not None and not objective.reads(VIRTUAL_PATH):
        name = config.virtual_tokens[0]
        raise PatternError(
            f"adapters.{name}: no loss of objective {config.objective.kind!r} depends on virtual tokens."
        )
    read = tuple(path for path in trainable if objective.reads(path))
    if not read:
        chosen = ", ".join(config.trainable)
        raise PatternError(f"trainable: {chosen} chooses nothing that a loss of objective {kind!r} depends on.")
    return read


def chosen_adapters(configs: Mapping[str, LowRankConfig], maps: Collection[str]) -> Adapters:
    """The adapter of every linear map that has one.

    Raises:
        PatternError: a pattern chooses no map beside which an adapter can stand.
    """
    found: dict[str, LowRankConfig] = {}
    for name, config in configs.items():
        try:
            chosen = choose(config.targets, maps)
        except PatternError as error:
            raise PatternError(f"adapters.{name}.targets: {error}") from None
        found = dict.fromkeys(sorted(chosen), config) | found
    return found


def _check_adapted(adapters: Adapters, trainable: Collection[str]) -> None:
    both = sorted(path for path in adapters if f"{path}/kernel" in trainable)
    if both:
        raise PatternError(
            f"adapters: {both[0]} has an adapter, but its kernel trains as well. Leave it out of trainable, or out of "
            "the adapters' targets."
        )
