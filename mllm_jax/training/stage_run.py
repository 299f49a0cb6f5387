"""One stage from its beginning, or from its last checkpoint, to its end."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from data_pipelines.gathering import gather_json
from data_pipelines.positions import gather_positions
from data_pipelines.quota import Tally
from data_pipelines.source_report import SourceReport
from mllm_jax.checkpoint.checkpointer import Checkpointer, CheckpointError
from mllm_jax.checkpoint.description import make_description
from mllm_jax.checkpoint.layout import OBJECTIVE, mark_done
from mllm_jax.checkpoint.reading import last_stored_step, read_frozen, read_trained
from mllm_jax.models.adapters import adapter_paths, with_initial_adapters, without_adapters
from mllm_jax.models.kernel_choices import kernel_choices
from mllm_jax.models.layers.attention_kernels import platform
from mllm_jax.models.quantised_kernels import with_quantised_kernels, without_scales
from mllm_jax.models.virtual_tokens import initial_tokens, virtual_paths, with_initial_virtual_tokens
from mllm_jax.parallel.compiler_options import compiler_options
from mllm_jax.parallel.processes import is_first_process
from mllm_jax.parallel.rules import ParameterTree, batch_sharding
from mllm_jax.parallel.watch import leaving_at_once
from mllm_jax.training.evaluation import held_out_losses
from mllm_jax.training.flops import mesh_peak
from mllm_jax.training.ingredients import Feed, FeedRequest, Ingredients, Json
from mllm_jax.training.loop import LoopParts, Rhythm, run_loop
from mllm_jax.training.metrics import MetricLog, NoMetricLog, rewind_metrics
from mllm_jax.training.plan import Run, Stage
from mllm_jax.training.progress import make_progress
from mllm_jax.training.rates import RateMeter
from mllm_jax.training.signals import StopRequest
from mllm_jax.training.state import TrainState, create_state, merge, shardings_of
from mllm_jax.training.step import StepOptions, compile_train_step, make_evaluation_step, make_train_step
from mllm_jax.training.summary import kernel_table, summary_table


def train_stage(stage: Stage, earlier: Sequence[Stage], run: Run, stop: StopRequest) -> bool:
    """Runs one stage under the run's mesh; returns whether it was finished.

    Args:
        stage: the one to run.
        earlier: those before it, all done.
        run: what they share.
        stop: asked after every step.
    """
    with contextlib.ExitStack() as exits:
        checkpointer = exits.enter_context(contextlib.closing(Checkpointer(stage.folder, run.checkpoint.keep)))
        # Inside of the checkpointer, whose closing waits for the other processes.
        exits.enter_context(leaving_at_once())
        state, start, position = _begin(stage, earlier, run, checkpointer)
        _announce(stage, start, run)
        progress = make_progress(run.console, stage.config.name, start, stage.config.steps)
        exits.callback(progress.close)
        log = exits.enter_context(contextlib.closing(_open_log(stage, earlier, run, start, progress)))
        request = FeedRequest(stage.config, "train", batch_sharding(run.mesh), position)
        feed = exits.enter_context(contextlib.closing(run.ingredients.open_feed(request)))
        parts = LoopParts(
            rhythm=_rhythm(stage, run),
            train_step=compiled_step(stage, run),
            validate=_validation(stage, run),
            feed=feed,
            check_quota=partial(_check_quota, feed),
            save=partial(_save, stage, run, checkpointer),
            checkpointer=checkpointer,
            log=log,
            progress=progress,
            meter=_meter(stage, run),
            stop=stop,
        )
        end = run_loop(parts, state, start)
    if end.finished:
        _say_end(stage, end.step, parts.meter, run)
        _finish(stage, end.step)
    return end.finished


def _begin(
    stage: Stage, earlier: Sequence[Stage], run: Run, checkpointer: Checkpointer
) -> tuple[TrainState, int, Json | None]:
    """The state, the number of steps done and the data position: from the last checkpoint, or from the beginning."""
    step = checkpointer.latest_step()
    if step is None:
        state = create_state(first_parameters(stage, earlier, run), stage.abstract, stage.optimizer)
        checkpointer.save_frozen(state.frozen)
        return state, 0, None
    if step > stage.config.steps:
        raise CheckpointError(
            f"{stage.folder} has done {step} steps already, but the stage has only {stage.config.steps}. "
            "Set steps to what was done or more, or start a new run directory."
        )
    abstract = stage.abstract
    restored = checkpointer.restore(step, abstract.trainable, abstract.optimizer_state, bool(abstract.average))
    frozen = read_frozen(stage.folder, stage.abstract.frozen)
    count = jax.device_put(jax.numpy.asarray(step, "int32"), stage.abstract.step.sharding)
    state = TrainState(count, restored.trainable, frozen, restored.optimizer_state, restored.average)
    return state, step, restored.position


def first_parameters(stage: Stage, earlier: Sequence[Stage], run: Run) -> ParameterTree:
    """The initial parameters, with what earlier stages trained in their place.

    Earlier stages are read from disk even when this process has just run them, and only what they trained: so an
    uninterrupted run is exactly a resumed one, and parameters that were frozen in a smaller format lose nothing.

    Args:
        stage: the one that begins.
        earlier: those before it, all done.
        run: what they share.
    """
    precision, seed = run.ingredients.precision, run.ingredients.seed
    wanted = stage.abstract_parameters()
    abstract = flatten_dict(without_scales(wanted, precision.frozen_dtype), sep="/")
    adapters, owned = adapter_paths(stage.adapters, stage.axes), stage.objective.own.paths()
    virtual = virtual_paths(stage.axes)
    plain = {path: leaf for path, leaf in abstract.items() if path not in adapters | virtual | owned}
    parameters = _left_by(earlier, unflatten_dict(plain, sep="/"), run)
    if precision.frozen_kernels is not None:
        parameters = with_quantised_kernels(precision.frozen_kernels, parameters, wanted)
    places = {path: abstract[path].sharding for path in adapters}
    parameters = with_initial_adapters(stage.adapters, parameters, stage.axes, places, seed)
    parameters = _with_virtual_tokens(stage, parameters, {path: abstract[path].sharding for path in virtual}, run)
    own = {path.removeprefix(f"{OBJECTIVE}/"): abstract[path] for path in owned}
    return parameters | ({OBJECTIVE: unflatten_dict(_initial_own(stage, own, parameters, run), sep="/")} if own else {})


def _with_virtual_tokens(stage: Stage, parameters: ParameterTree, places: Mapping[str, Any], run: Run) -> ParameterTree:
    """The parameters with the virtual tokens as the stage begins, if it has any."""
    config, ingredients = stage.virtual_tokens, run.ingredients
    if config is None:
        return parameters
    of_text = () if config.text is None else tuple(ingredients.token_ids(config.text))
    tokens = initial_tokens(config, ingredients.model.decoder, of_text, ingredients.seed)
    return with_initial_virtual_tokens(config, ingredients.model, parameters, tokens, places)


def _initial_own(
    stage: Stage, abstract: Mapping[str, jax.ShapeDtypeStruct], parameters: ParameterTree, run: Run
) -> dict[str, Any]:
    """What the stage's objective owns, as it begins, by paths below `objective/`."""
    ingredients = run.ingredients

    def make(parameters: ParameterTree) -> dict[str, Any]:
        made = stage.objective.own.initial(parameters, jax.random.key(ingredients.seed))
        return {path: leaf.astype(abstract[path].dtype) for path, leaf in made.items()}

    made = jax.jit(make, out_shardings={path: leaf.sharding for path, leaf in abstract.items()})(parameters)
    return made | dict(ingredients.objective_weights(stage.config, abstract))


def _left_by(earlier: Sequence[Stage], abstract: ParameterTree, run: Run) -> ParameterTree:
    """The parameters of the plain model as the last of the earlier stages left them."""
    # A part that was trained whole need not be drawn or read from its backbone only to be replaced.
    trained = {path for before in earlier for path in _paths(before.abstract.trainable)}
    merging = any(before.adapters for before in earlier)
    initial = {part: tree for part, tree in abstract.items() if merging or not _paths({part: tree}) <= trained}
    parameters = run.ingredients.initial_parameters(initial) if initial else {}
    for before in earlier:
        stored = read_trained(last_stored_step(before.folder), merge(before.abstract_adapters(), abstract))
        parameters = without_adapters(before.adapters, merge(parameters, stored), before.axes)
    return parameters


def _paths(tree: ParameterTree) -> set[str]:
    return set(flatten_dict(tree, sep="/"))


def _announce(stage: Stage, start: int, run: Run) -> None:
    if run.console is None:
        return
    config = stage.config
    begins = f"goes on after step {start} of {config.steps}" if start else f"{config.steps} steps"
    title = f"stage {config.name}: {begins}, {config.rows} rows of {config.row_length} tokens"
    run.console.print(summary_table(stage.summary(), title))
    model, dtype = run.ingredients.model, run.ingredients.precision.compute_dtype
    kernels = kernel_choices(model, dtype, platform(), stage.virtual_tokens is not None)
    run.console.print(kernel_table(kernels))
    options = compiler_options(run.mesh)
    if options:
        told = ", ".join(f"{name} {value}" for name, value in options.items())
        run.console.print(f"compiled with {told}", highlight=False)


def _open_log(stage: Stage, earlier: Sequence[Stage], run: Run, start: int, progress: Any) -> MetricLog:
    if not is_first_process():
        return NoMetricLog()
    names = [before.config.name for before in earlier]
    rewind_metrics(run.folder / "metrics.jsonl", names, stage.config.name, start)
    return MetricLog(run.folder, stage.config.name, progress, start, run.logging.tensorboard)


def _rhythm(stage: Stage, run: Run) -> Rhythm:
    validation = stage.config.validation
    return Rhythm(
        steps=stage.config.steps,
        log_every=run.logging.every,
        validate_every=None if validation is None else validation.every,
        save_every=run.checkpoint.every,
    )


def compiled_step(stage: Stage, run: Run) -> Any:
    """The training step of a stage under jit: what a run runs and a plan compiles."""
    config = stage.config
    options = StepOptions(config.accumulate, config.average, seed=run.ingredients.seed)
    step = make_train_step(stage.objective, stage.optimizer, stage.rates, options)
    return compile_train_step(step, shardings_of(stage.abstract), batch_sharding(run.mesh))


def _validation(stage: Stage, run: Run) -> Any:
    """A function from the state to the held-out losses."""
    config = stage.config
    if config.validation is None:
        return None
    request = FeedRequest(config, "validation", batch_sharding(run.mesh), None)
    step, batches = jax.jit(make_evaluation_step(stage.validation_objective)), config.validation.most_batches
    return lambda state: held_out_losses(step, state, run.ingredients.open_feed(request), batches)


def _check_quota(feed: Feed, tally: Tally) -> None:
    feed.check_quota([Tally.from_json(gathered) for gathered in gather_json(tally.to_json())])


def _meter(stage: Stage, run: Run) -> RateMeter:
    return RateMeter(stage.step_cost(run.ingredients.model), mesh_peak(list(run.mesh.devices.flat)))


def _save(stage: Stage, run: Run, checkpointer: Checkpointer, step: int, state: TrainState, position: Any) -> None:
    ingredients = run.ingredients
    checkpointer.save(
        step,
        state.trainable,
        state.optimizer_state,
        gather_positions(position),
        _description(stage, ingredients),
        state.average,
    )


def _description(stage: Stage, ingredients: Ingredients) -> Json:
    adapters = {path: config.model_dump(mode="json") for path, config in stage.adapters.items()}
    virtual = None if stage.virtual_tokens is None else stage.virtual_tokens.model_dump(mode="json")
    return make_description(
        ingredients.run, stage.config.name, stage.config.trainable, adapters, ingredients.tokenizer_files, virtual
    )


def _say_end(stage: Stage, step: int, meter: RateMeter, run: Run) -> None:
    """Says, where the data ended before the schedule did, what was drawn of each source and what was not."""
    drawn = meter.drawn()
    if run.console is None or step == stage.config.steps:
        return
    asked = stage.config.mixture.epochs
    told = [_told(name, source, asked.get(name, math.inf)) for name, source in drawn.items()]
    text = f"stage {stage.config.name}: the data ended after step {step} of {stage.config.steps}"
    run.console.print("; ".join([text, *told]), highlight=False, soft_wrap=True)


def _told(name: str, source: SourceReport, asked: float) -> str:
    """`chats: 0.83 of 1 epochs, 830 records met, 170 left`."""
    if math.isinf(asked):
        return f"{name}: {source.epochs:.4g} epochs, {source.met:,} records met"
    given = math.isclose(source.epochs, asked)
    if given or source.planned is not None:
        left = 0 if given or source.planned is None else source.planned - source.met
        return f"{name}: {source.epochs:.4g} of {asked:g} epochs, {source.met:,} records met, {left:,} left"
    uncounted = "some are left, how many is known with an index alone"
    return f"{name}: less than {asked:g} epochs, {source.met:,} records met; {uncounted}"


def _finish(stage: Stage, step: int) -> None:
    if is_first_process():
        mark_done(stage.folder, {"stage": stage.config.name, "step": step})
    # No process may look at the mark before it is there.
    multihost_utils.sync_global_devices(f"done {stage.folder.name}")
