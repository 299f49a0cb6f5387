"""The verb `data` and its actions."""

import argparse

from mllm_jax.verbs.storage import add_storage, storage_of
from mllm_jax.verbs.verb import add_verb


def add_data_verb(verbs) -> None:
    data = verbs.add_parser("data", help="look into shards and conversations")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True)
    verify = add_verb(actions, "verify", "read every record and every image, and say what a run would skip", _verify)
    verify.add_argument(
        "inputs",
        nargs="+",
        metavar="DATA",
        help="tar shards or folders of them, conversations (.json, .jsonl, .parquet, or .yaml that blends them)",
    )
    verify.add_argument("--images", help="folder of the images that conversations name (default: beside them)")
    verify.add_argument(
        "--report", metavar="FILE.jsonl", help="a line for every shard; those that it has already are not read again"
    )
    verify.add_argument("--threads", type=int, default=2, help="that read and decode (default: %(default)s)")
    add_storage(verify)
    build = add_verb(
        actions, "build", "write the records of a source as indexed tar shards, going on where it stopped", _build
    )
    build.add_argument(
        "source", metavar="SOURCE", help="conversations (.json, .jsonl), tar shards, or a run file (.yaml)"
    )
    build.add_argument("output", metavar="OUT", help="folder of the shards; a build that was stopped in it goes on")
    build.add_argument("--source", dest="name", metavar="NAME", help="which of the run file's data.sources")
    build.add_argument("--images", help="folder of the images that conversations name (default: beside them)")
    build.add_argument(
        "--samples-per-shard", type=int, default=1000, metavar="N", help="records of a shard (default: %(default)s)"
    )
    build.add_argument("--processes", type=int, default=1, help="that read and write (default: %(default)s)")
    add_storage(build, "SOURCE's, if that is a run file")
    index = add_verb(
        actions, "index", "note where every sample of tar shards stands, so that runs need not look", _index
    )
    index.add_argument("shards", nargs="+", metavar="SHARDS", help="tar shards of any kind; what is there is kept")
    index.add_argument(
        "--cache", metavar="DIR", help="folder of the indexes, for shards that are remote or lie where nobody may write"
    )
    index.add_argument("--threads", type=int, default=2, help="that walk shards (default: %(default)s)")
    add_storage(index)
    _add_stage_data_verbs(actions)


def _add_stage_data_verbs(actions) -> None:
    show = add_verb(actions, "show", "show rows as the model will get them, on a page or in the terminal", _show)
    stats = add_verb(actions, "stats", "count what the data of a run hold: lengths, sizes, copies, full rows", _stats)
    bench = add_verb(
        actions, "bench", "measure this machine's loader on the data of a run, and count host cores", _bench
    )
    for parser, default in ((show, "the first"), (stats, "all"), (bench, "the first")):
        parser.add_argument("run_file", metavar="RUN.yaml", help="the run file")
        parser.add_argument("overrides", metavar="key.path=value", nargs="*", help="replace a value of the run file")
        parser.add_argument("--stage", metavar="NAME", help=f"a stage of the run (default: {default})")
    show.add_argument("--rows", type=int, default=4, help="rows, from the first batch on (default: %(default)s)")
    show.add_argument(
        "--output", metavar="PAGE.html", help="the page to write (default: show.html, or none with --terminal)"
    )
    show.add_argument("--terminal", action="store_true", help="print the rows")

    stats.add_argument("--records", type=int, metavar="N", help="of each source, spread over its shards (default: all)")
    stats.add_argument("--output", metavar="FOLDER", help="folder for stats.json and a plot of each stage")
    stats.add_argument("--json", action="store_true", help="print one line of JSON in the place of tables")

    bench.add_argument("--seconds", type=float, default=20.0, help="that are measured (default: %(default)s)")
    bench.add_argument(
        "--accelerator", metavar="KIND", help="count the host cores that it needs: v5e, v5p, v6e, h100, a100"
    )
    bench.add_argument("--devices", type=int, metavar="N", help="of that kind (default: one host of them)")
    bench.add_argument(
        "--mfu", type=float, default=0.5, help="share of their peak that the model reaches (default: %(default)s)"
    )
    bench.add_argument("--json", action="store_true", help="print one line of JSON in the place of tables")


def _verify(options: argparse.Namespace) -> int:
    from mllm_jax.data_tools.verification_terminal import show_verification

    return show_verification(options.inputs, options.images, options.threads, options.report, storage_of(options))


def _build(options: argparse.Namespace) -> None:
    from mllm_jax.chosen_storage import chosen_storage
    from mllm_jax.data_tools.building_terminal import show_build
    from mllm_jax.data_tools.named_source import is_run_file, source_of

    source = source_of(options.source, options.name, options.images)
    named = options.storage or (options.source if is_run_file(options.source) else None)
    storage = chosen_storage(named).config
    show_build(source, options.output, options.samples_per_shard, options.processes, storage)


def _index(options: argparse.Namespace) -> int:
    from mllm_jax.data_tools.building_terminal import show_indexing

    return show_indexing(options.shards, options.cache, options.threads, storage_of(options))


def _show(options: argparse.Namespace) -> None:
    from mllm_jax.config import load_run
    from mllm_jax.data_tools.showing import put_out, shown_stage

    run = load_run(options.run_file, options.overrides)
    page = options.output or (None if options.terminal else "show.html")
    put_out(shown_stage(run, options.stage, options.rows), page, terminal=options.terminal)


def _stats(options: argparse.Namespace) -> None:
    from mllm_jax.config import load_run
    from mllm_jax.data_tools.statistics_terminal import show_statistics

    run = load_run(options.run_file, options.overrides)
    show_statistics(run, options.stage, options.records, options.output, as_json=options.json)


def _bench(options: argparse.Namespace) -> None:
    from mllm_jax.config import load_run
    from mllm_jax.data_tools.bench import wanted_devices
    from mllm_jax.data_tools.bench_terminal import show_bench

    wanted = wanted_devices(options.accelerator, options.devices, options.mfu)
    run = load_run(options.run_file, options.overrides)
    show_bench(run, options.stage, options.seconds, wanted, as_json=options.json)
