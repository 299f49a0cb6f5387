"""The verb `plan`."""

import argparse

from mllm_jax.verbs.verb import add_verb


def add_plan_verb(verbs) -> None:
    plan = add_verb(
        verbs, "plan", "compile a run's steps for a machine that need not be there: memory, time, cost", _plan
    )
    plan.add_argument("run_file", metavar="RUN.yaml", help="the run file")
    plan.add_argument("overrides", metavar="key.path=value", nargs="*", help="replace a value of the run file")
    plan.add_argument(
        "--topology", required=True, metavar="KIND:SIZE", help="v5e:16x16, v5p:4x4x4, v6e:8x8, h100:8, cpu:8"
    )
    plan.add_argument("--stage", metavar="NAME", help="a stage of the run (default: all)")
    plan.add_argument("--price-per-chip-hour", type=float, metavar="PRICE", help="adds what each stage costs")
    plan.add_argument(
        "--samples-per-row", type=float, metavar="N", help="that are packed into a row (default: one an image slot)"
    )
    plan.add_argument(
        "--mfu", type=float, default=0.4, help="assumed of GPUs, for which nothing compiles here (default: %(default)s)"
    )
    plan.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="a line for each value of a key of the run file, or of its stages (rows=256,512); may be given again",
    )
    plan.add_argument(
        "--search",
        metavar="BEST.yaml",
        help="try meshes, accumulation and recomputing for --stage (default: the last), and write the fastest that "
        "fits as a run file that extends this one",
    )
    plan.add_argument(
        "--compiles", type=int, default=12, metavar="N", help="that a search may take at most (default: %(default)s)"
    )
    plan.add_argument("--html", metavar="PAGE.html", help="also write a page with a bar for each term")
    plan.add_argument("--json", action="store_true", help="print one line of JSON in the place of tables")


def _plan(options: argparse.Namespace) -> int:
    from mllm_jax.planning.without_a_tpu import prepare_environment

    prepare_environment()
    from mllm_jax.planning.command import Asked, show_plans, show_search, show_sweep
    from mllm_jax.planning.stage_plan import PlanOptions
    from mllm_jax.planning.topology import parse_topology, simulate_devices

    topology = parse_topology(options.topology)
    simulate_devices(topology)
    wanted = PlanOptions(options.price_per_chip_hour, options.samples_per_row, options.mfu)
    asked = Asked(
        *(options.run_file, options.overrides, topology, options.stage, wanted), as_json=options.json, page=options.html
    )
    if ((options.sweep or options.html) and options.search) or (options.sweep and options.html):
        raise ValueError("give one of --sweep, --search and --html")
    if options.search:
        return show_search(asked, options.compiles, options.search)
    return show_sweep(asked, options.sweep) if options.sweep else show_plans(asked)
