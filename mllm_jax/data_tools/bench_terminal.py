"""What `mllm data bench` shows in the terminal."""

import json

from rich.console import Console
from rich.table import Table

from mllm_jax.config import RunConfig
from mllm_jax.data_tools.bench import Bench, Wanted, bench
from mllm_jax.training.host_cores import ACCELERATORS
from mllm_jax.training.progress import short


def show_bench(config: RunConfig, stage: str | None, seconds: float, wanted: Wanted | None, *, as_json: bool) -> None:
    """Measures and prints tables, or one line of JSON."""
    console = Console(stderr=as_json)
    with console.status("measuring the loader"):
        found = bench(config, stage, seconds, wanted)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    console.print(_speed_table(found))
    if found.needed is not None:
        console.print(_cores_table(found))


def _speed_table(found: Bench) -> Table:
    here = f"{found.cores_here} cores, {found.threads} decoding thread{'s' * (found.threads > 1)} a process"
    table = Table(title=f"stage {found.stage}: the loader on this machine ({here})", title_justify="left")
    columns = {"one process": found.loader, "no image decoded": found.undecoded}
    if found.spread is not None and found.spread_undecoded is not None:
        count = found.spread.processes
        name = f"{count} process{'es' * (count > 1)} beside it"
        columns |= {name: found.spread, "no image decoded ": found.spread_undecoded}
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    speeds = columns.values()
    for field in ("samples_per_second", "images_per_second", "rows_per_second", "tokens_per_second"):
        table.add_row(field.replace("_per_second", "/s"), *(short(getattr(each, field)) for each in speeds))
    table.add_row("CPU ms a sample", *(f"{each.cpu_ms_per_sample:.3g}" for each in speeds))
    table.add_row("  of packing threads", *(_known(each.packing_ms_per_sample, "{:.3g}") for each in speeds))
    if found.spread is not None:
        table.add_row("  of gathering", *(_known(each.gathering_ms_per_sample, "{:.3g}") for each in speeds))
    table.add_row("memory, MB", *(_known(each.memory_mb, "{:.0f}") for each in speeds))
    most = (found.process_samples_per_second, None, found.gathered_samples_per_second)
    table.add_row("samples/s at most, of any cores", *(_known(each, "{:,.0f}") for each in most[: len(columns)]))
    return table


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _cores_table(found: Bench) -> Table:
    needed, wanted = found.needed, found.wanted
    assert needed is not None and wanted is not None and found.flops_per_row is not None
    peak = ACCELERATORS[wanted.accelerator].peak
    title = f"for {wanted.devices} x {wanted.accelerator} at an MFU of {wanted.mfu:g} (assumed; --mfu)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("peak of a device, TFLOP/s", short(peak / 1e12))
    table.add_row("model's TFLOPs a row", f"{found.flops_per_row / 1e12:.3g}")
    table.add_row("rows/s that the devices eat", short(needed.rows_per_second))
    table.add_row("samples/s", short(needed.samples_per_second))
    table.add_row("images/s", short(needed.images_per_second))
    table.add_row("images/s a device", short(needed.images_per_second_per_device))
    table.add_row("cores like these, all hosts", short(needed.cores))
    hosts = f"{needed.hosts} host{'s' * (needed.hosts > 1)} of {ACCELERATORS[wanted.accelerator].devices_per_host}"
    table.add_row(f"cores a host ({hosts} devices)", short(needed.cores_per_host))
    table.add_row("data.processes, at least", short(needed.processes_per_host))
    return table
