"""What `mllm plan` shows in the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mllm_jax.planning.memory import OutOfMemory
from mllm_jax.planning.operations import PARTS
from mllm_jax.planning.stage_plan import REAL_OVER_PREDICTED, REAL_RANGE, PlanOptions, StagePlan
from mllm_jax.training.progress import short
from mllm_jax.training.summary import size


def show_plan(plan: StagePlan, options: PlanOptions, console: Console) -> None:
    """Prints every table of one stage."""
    console.print(plan_title(plan), style="bold", highlight=False, soft_wrap=True)
    if plan.failure is not None:
        _show_failure(plan, plan.failure, console)
    console.print(_memory_table(plan))
    console.print(_flops_table(plan))
    if plan.cost is not None:
        if plan.predicted is not None:
            console.print(_time_table(plan))
        console.print(_collectives_table(plan))
    if plan.feed is not None:
        console.print(_feed_table(plan, options))
    for warning in warnings(plan):
        console.print(f"! {warning}", highlight=False, soft_wrap=True)
    console.print()


def plan_title(plan: StagePlan) -> str:
    """What a stage does, and where."""
    stage, topology = plan.stage, plan.topology
    mesh = " x ".join(f"{axis} {length}" for axis, length in plan.mesh.items() if length > 1) or "one device"
    parts = f", accumulated in {stage.accumulate} parts" if stage.accumulate > 1 else ""
    hosts = f"{topology.hosts} host{'s' * (topology.hosts > 1)}"
    return (
        f"stage {stage.name} on {topology.name} ({topology.size} devices, {hosts}), mesh {mesh}: {stage.rows} rows of "
        f"{stage.row_length} tokens and {stage.images_per_row} image slots{parts}"
    )


def _show_failure(plan: StagePlan, failure: OutOfMemory, console: Console) -> None:
    needed = "" if failure.needed is None else f": a device needs {size(int(failure.needed))}"
    there = "" if failure.available is None else f", and has {size(int(failure.available))}"
    console.print(f"DOES NOT FIT{needed}{there}", style="bold red", highlight=False)
    table = _table("what holds the memory of a device, largest first", "where from", "array", "memory")
    for buffer in failure.buffers[:8]:
        table.add_row(buffer.operation[-60:], buffer.shape, size(int(buffer.bytes)))
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    # A title in the table would be broken where the table ends.
    table = Table(title=Text(title, style="italic", no_wrap=True, overflow="ignore"), title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place and name != "array" else "left")
    return table


def _memory_table(plan: StagePlan) -> Table:
    compiled = "" if plan.memory is not None else ": what the step is given, for nothing was compiled"
    table = _table(f"memory of a device{compiled}", "", "memory")
    for name, held in plan.state.items():
        table.add_row(name, size(int(held)))
    memory = plan.memory
    chip = plan.topology.chip
    if memory is None:
        table.add_section()
        table.add_row("together", size(int(sum(plan.state.values()))))
        if chip is not None:
            table.add_row("usable", size(chip.memory_bytes))
        return table
    table.add_row("padding of these", size(max(0, int(memory.arguments - sum(plan.state.values())))))
    table.add_row("temporaries then", size(int(memory.temporaries)))
    table.add_row("outputs in places of their own", size(int(memory.outputs)))
    table.add_section()
    table.add_row("at the worst moment", size(int(memory.peak)))
    if memory.capacity is not None:
        share = f"{memory.peak / memory.capacity:.0%}"
        table.add_row("usable", f"{size(int(memory.capacity))}: {share}, {'fits' if memory.fits else 'DOES NOT FIT'}")
    return table


def _flops_table(plan: StagePlan) -> Table:
    table = _table("operations of a device in a step, TFLOP", "part", "of the model", "executed")
    executed = None if plan.cost is None else plan.cost.flops
    asked = plan.model_flops
    for part in PARTS:
        own = None if asked is None else asked.get(part, 0.0) / plan.topology.size
        done = None if executed is None else executed[part]
        if own or done:
            table.add_row(part, _tera(own), _tera(done))
    table.add_section()
    total = None if asked is None else sum(asked.values()) / plan.topology.size
    table.add_row("together", _tera(total), _tera(None if executed is None else sum(executed.values())))
    if plan.cost is not None:
        table.add_row("  of which a second time, to save memory", "", _tera(plan.cost.again))
        if plan.cost.kernel_flops:
            table.add_row("  of which in kernels", "", _tera(sum(plan.cost.kernel_flops.values())))
        table.add_row("bytes moved in memory", "", size(int(plan.cost.bytes)))
        if plan.cost.host_bytes:
            table.add_row("bytes moved to the host and back", "", size(int(plan.cost.host_bytes)))
    return table


def _tera(flops: float | None) -> str:
    return "-" if flops is None else f"{flops / 1e12:.3g}"


def _time_table(plan: StagePlan) -> Table:
    table = _table("predicted time of a step, by the schedule of the compiled program", "", "ms", "share")
    for name, seconds in time_terms(plan):
        table.add_row(name, f"{1e3 * seconds:,.1f}", f"{seconds / (plan.predicted or 1):.1%}")
    table.add_section()
    assert plan.predicted is not None and plan.expected is not None
    mfu, expected = plan.mfu, plan.expected_mfu
    table.add_row("together", f"{1e3 * plan.predicted:,.1f}", "" if mfu is None else f"MFU {mfu:.3f}")
    low, high = REAL_RANGE
    name = f"likely measured: {REAL_OVER_PREDICTED} of it ({low} to {high} in published runs)"
    table.add_row(name, f"{1e3 * plan.expected:,.1f}", "" if expected is None else f"MFU {expected:.3f}")
    return table


def time_terms(plan: StagePlan) -> list[tuple[str, float]]:
    """What the predicted time of a step is made of, in seconds."""
    cost = plan.cost
    if cost is None:
        return []
    terms = [(part if part != "other" else "optimizer, loss and other", cost.compute[part]) for part in PARTS]
    terms += [(f"kernel {name}", seconds) for name, seconds in cost.kernels.items()]
    terms += [
        (f"waiting for {use.kind} over {use.axes}", use.exposed)
        for use in sorted(cost.collectives.values(), key=lambda use: -use.exposed)
    ]
    terms.append(("waiting for copies on the chip", cost.copies))
    return [(name, seconds) for name, seconds in terms if seconds > 0]


def _collectives_table(plan: StagePlan) -> Table:
    columns = ("collective", "over", "executed", "nothing beside", "bytes", "ms of links", "ms waited")
    table = _table("collectives of a device in a step", *columns)
    assert plan.cost is not None
    for use in sorted(plan.cost.collectives.values(), key=lambda use: -use.bytes):
        times = (f"{1e3 * use.seconds:,.1f}", f"{1e3 * use.exposed:,.1f}") if use.seconds else ("-", "-")
        counts = f"{use.count:,.0f}", f"{use.synchronous:,.0f}"
        table.add_row(use.kind, use.axes, *counts, size(int(use.bytes)), *times)
    return table


def _feed_table(plan: StagePlan, options: PlanOptions) -> Table:
    found, charged = plan.feed, plan.bill
    assert found is not None and charged is not None and plan.expected is not None
    assumed = "" if plan.predicted else f", at an MFU of {options.assumed_mfu:g} (assumed; --mfu)"
    title = f"at {plan.expected:.3g} s a step with full rows{assumed}"
    table = _table(title, "", "the run", "each host")
    table.add_row("images/s", short(found.images), short(found.images_per_host))
    table.add_row("samples/s", short(found.samples), short(found.samples_per_host))
    table.add_row("bytes/s of batches", "", f"{size(int(found.bytes_per_host))}/s")
    table.add_row("tokens a day", f"{found.tokens_per_day:.3g}", "")
    table.add_row("images a day", f"{found.images_per_day:.3g}", "")
    table.add_row(f"hours for {plan.stage.steps:,} steps", f"{charged.hours:,.2f}", "")
    table.add_row("chip hours", f"{charged.chip_hours:,.1f}", "")
    if charged.price is not None:
        table.add_row(f"price at {options.price_per_chip_hour:g} a chip hour", f"{charged.price:,.2f}", "")
    return table


def warnings(plan: StagePlan) -> list[str]:
    """What a plan's reader should look at."""
    found = [
        f"{each.path} {each.shape} is whole on every device: {size(each.bytes)}; split one of its axes"
        for each in plan.replicated
    ]
    memory = plan.memory
    if memory is not None and memory.tight:
        found.append(
            f"all temporaries at once would take {size(int(memory.allocated))}, with the arguments more than a device "
            "has: it fits because not all live together, so leave it some room"
        )
    if plan.cost is not None:
        found += [
            f"only the data say how often this loop runs; counted once: {name}" for name in plan.cost.unknown_loops
        ]
        found += [
            f"nobody says how many operations the kernel {name} does; it is timed by its bytes"
            for name in sorted(plan.cost.unknown_kernels)
        ]
    chip = plan.topology.chip
    if chip is not None and not plan.topology.is_tpu:
        found.append("no compiler for a GPU runs here: temporaries, collectives and the time of a step are not known")
    if plan.topology.chip is None and plan.cost is not None:
        found.append("the compiler of a CPU estimates no times")
    if plan.model_flops is None:
        found.append("this objective is not one pass of the model: its FLOPs and so MFU cannot be counted")
    return found
