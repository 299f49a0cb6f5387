"""The `mllm` command. Each verb is a few lines that call into a room; nothing heavy is imported for `--help`."""

import argparse
import sys
from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the process's exit code (0 done, 1 refused with a message, 2 wrong usage)."""
    options = _options(build_parser(), arguments)
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        return run(options) or 0
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"mllm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a verb, whose replaced values may also stand behind options, where argparse looks for none."""
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "overrides") or any(each.startswith("-") for each in rest):
        return parser.parse_args(arguments)
    options.overrides += rest
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb and option."""
    parser = argparse.ArgumentParser(
        prog="mllm", description="Pretrain multimodal LLMs on JAX: from tar shards to a model in Hugging Face format."
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_run_verbs(verbs)
    _add_scoring_verbs(verbs)
    _add_model_verbs(verbs)
    _add_tokenizer_verb(verbs)
    _add_data_verb(verbs)
    return parser


def _verb(verbs, name: str, summary: str, run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_run_verbs(verbs) -> None:
    train = _verb(verbs, "train", "run the stages of a run file, going on where an earlier start stopped", _train)
    config = _verb(verbs, "config", "print the fully resolved run, or the JSON schema of run files", _config)
    for parser, nargs in ((train, None), (config, "?")):
        parser.add_argument("run_file", metavar="RUN.yaml", nargs=nargs, help="the run file")
        parser.add_argument("overrides", metavar="key.path=value", nargs="*", help="replace a value of the run file")
    config.add_argument("--schema", action="store_true", help="print the JSON schema that editors check run files with")


WHAT_IS_MODEL = "a run directory, an imported folder or a Hugging Face folder"


def _add_scoring_verbs(verbs) -> None:
    evaluate = _verb(verbs, "eval", "score a model's answers, beside the same model shown other images", _evaluate)
    evaluate.add_argument("model", metavar="MODEL", help=WHAT_IS_MODEL)
    evaluate.add_argument(
        "--data", required=True, help="conversations (.json, .jsonl, .parquet, or .yaml that blends them) or tars"
    )
    evaluate.add_argument("--images", help="folder or tar of the images that conversations name (default: beside it)")
    evaluate.add_argument("--limit", type=int, help="ask no more than this many questions")
    evaluate.add_argument("--rows", type=int, default=32, help="questions answered at once (default: %(default)s)")
    evaluate.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    evaluate.add_argument("--template", metavar="NAME", help="chat template to ask with (default: the model's own)")
    evaluate.add_argument("--history", action="store_true", help="ask each question after those before it, answered")
    evaluate.add_argument("--no-blank", action="store_true", help="leave the blank-image baseline out")
    evaluate.add_argument("--shuffled", action="store_true", help="ask with another question's images too")
    evaluate.add_argument("--output", help="folder for scores.json and answers.jsonl")

    score = _verb(
        verbs, "score", "write preference pairs with a model's log-probabilities, as a cached reference", _score
    )
    score.add_argument("model", metavar="MODEL", help=WHAT_IS_MODEL)
    score.add_argument("--data", required=True, metavar="PAIRS", help="preference pairs (.json, .jsonl)")
    score.add_argument("--images", help="folder of the images that pairs name (default: beside the data)")
    score.add_argument("--output", required=True, metavar="FILE.jsonl", help="where the pairs and their scores go")
    score.add_argument("--rows", type=int, default=8, help="answers scored at once (default: %(default)s)")
    score.add_argument("--template", metavar="NAME", help="chat template to write with (default: the model's own)")


def _add_model_verbs(verbs) -> None:
    generate = _verb(verbs, "generate", "answer one prompt, or every line of a JSONL file", _generate)
    generate.add_argument("--model", required=True, metavar="MODEL", help=WHAT_IS_MODEL)
    generate.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be given again")
    generate.add_argument("--prompt", metavar="TEXT", help="what to ask")
    generate.add_argument("--input", metavar="FILE.jsonl", help='lines of {"prompt": ..., "image": path or list}')
    generate.add_argument("--output", metavar="FILE.jsonl", help="where the answers to --input go")
    generate.add_argument(
        "--rows", type=int, default=8, help="lines of --input answered at once (default: %(default)s)"
    )
    generate.add_argument("--json", action="store_true", help="print the answer as JSON with its tokens")
    _add_sampling(generate)

    chat = _verb(verbs, "chat", "talk with a model in the terminal, about images too", _chat)
    chat.add_argument("--model", required=True, metavar="MODEL", help=WHAT_IS_MODEL)
    chat.add_argument("--image", action="append", default=[], metavar="FILE", help="an image to begin with")
    _add_sampling(chat)

    import_ = _verb(verbs, "import", "turn a Hugging Face folder into this project's own folder", _import)
    import_.add_argument(
        "source", metavar="HF_FOLDER", help="a folder of transformers: an encoder, a decoder or a whole model"
    )
    import_.add_argument("output", metavar="OUT", help="a folder that is not there yet")

    export = _verb(verbs, "export", "write a model as a Hugging Face folder, or as this project's own", _export)
    export.add_argument("model", metavar="RUN_OR_CHECKPOINT", help=WHAT_IS_MODEL + ", or one checkpoint of a run")
    export.add_argument("output", metavar="HF_FOLDER", help="a folder that is not there yet")
    export.add_argument(
        "--format",
        choices=("hugging_face", "mllm"),
        default="hugging_face",
        help="mllm is this project's own folder, for models that transformers has no class for (default: %(default)s)",
    )
    export.add_argument(
        "--connector-only", action="store_true", help="the connector's weights alone, as an OpenFlamingo checkpoint"
    )
    adapters = export.add_mutually_exclusive_group()
    adapters.add_argument("--merge", action="store_true", help="merge low-rank adapters into the weights (the default)")
    adapters.add_argument(
        "--adapter", metavar="FOLDER", help="write adapters here in peft's format; HF_FOLDER is their base"
    )
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest tokens; 0: all of them")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from this much probability (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: %(default)s)")


def _add_tokenizer_verb(verbs) -> None:
    tokenizer = verbs.add_parser("tokenizer", help="train a SentencePiece tokenizer")
    actions = tokenizer.add_subparsers(title="actions", metavar="ACTION", required=True)
    train = _verb(
        actions, "train", "train a SentencePiece tokenizer on captions, conversations or text", _train_tokenizer
    )
    train.add_argument(
        "inputs", nargs="+", metavar="FILE", help=".txt lines, .json/.jsonl conversations or .tar shards"
    )
    train.add_argument("--output", required=True, metavar="FILE.model", help="the tokenizer to write")
    train.add_argument("--vocabulary", type=int, default=32000, help="number of pieces (default: %(default)s)")
    train.add_argument("--algorithm", choices=("bpe", "unigram"), default="bpe", help="(default: %(default)s)")


def _add_data_verb(verbs) -> None:
    data = verbs.add_parser("data", help="look into shards and conversations")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True)
    verify = _verb(actions, "verify", "read every record and every image, and say what a run would skip", _verify)
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
    build = _verb(
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
    index = _verb(actions, "index", "note where every sample of tar shards stands, so that runs need not look", _index)
    index.add_argument("shards", nargs="+", metavar="SHARDS", help="tar shards of any kind; what is there is kept")
    index.add_argument(
        "--cache", metavar="DIR", help="folder of the indexes, for shards that are remote or lie where nobody may write"
    )
    index.add_argument("--threads", type=int, default=2, help="that walk shards (default: %(default)s)")
    _add_stage_data_verbs(actions)


def _add_stage_data_verbs(actions) -> None:
    show = _verb(actions, "show", "show rows as the model will get them, on a page or in the terminal", _show)
    stats = _verb(actions, "stats", "count what the data of a run hold: lengths, sizes, copies, full rows", _stats)
    bench = _verb(actions, "bench", "measure this machine's loader on the data of a run, and count host cores", _bench)
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


def _train(options: argparse.Namespace) -> int | None:
    from mllm_jax.assemble import train
    from mllm_jax.config import load_run

    return train(load_run(options.run_file, options.overrides))


def _config(options: argparse.Namespace) -> None:
    from mllm_jax.config import load_run, resolved_yaml, run_schema

    if options.schema:
        print(run_schema())
    elif options.run_file is None:
        raise ValueError("give a run file, or --schema")
    else:
        print(resolved_yaml(load_run(options.run_file, options.overrides, check_paths=False)), end="")


def _load(path: str, template: str | None = None):
    from data_pipelines.transforms.templates import TEMPLATES
    from mllm_jax.interop.model_folder import load_model

    if template is not None and template not in TEMPLATES:
        raise ValueError(f"there is no chat template {template!r}; templates: {', '.join(sorted(TEMPLATES))}")
    return load_model(path, chat_template=TEMPLATES[template] if template else None)


def _answerer(options: argparse.Namespace, rows: int = 1):
    from mllm_jax.generation.answering import Answerer
    from mllm_jax.generation.decode import DecodingConfig
    from mllm_jax.generation.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    decoding = DecodingConfig(max_new_tokens=options.max_new_tokens, sampling=sampling, seed=options.seed, rows=rows)
    return Answerer(_load(options.model), decoding)


def _evaluate(options: argparse.Namespace) -> None:
    from mllm_jax.evaluation.evaluate import EvaluationConfig
    from mllm_jax.evaluation.report import write_report
    from mllm_jax.terminal import show_evaluation

    config = EvaluationConfig(
        rows=options.rows,
        max_new_tokens=options.max_new_tokens,
        blank=not options.no_blank,
        shuffled=options.shuffled,
        history=options.history,
        limit=options.limit,
    )
    evaluation = show_evaluation(_load(options.model, options.template), options.data, config, options.images)
    if options.output:
        write_report(evaluation, options.output)
        print(f"scores and answers: {options.output}")


def _score(options: argparse.Namespace) -> None:
    from mllm_jax.generation.answering import Answerer
    from mllm_jax.generation.decode import DecodingConfig
    from mllm_jax.terminal import show_scoring

    answerer = Answerer(_load(options.model, options.template), DecodingConfig(rows=options.rows))
    show_scoring(answerer, options.data, options.output, options.images)


def _generate(options: argparse.Namespace) -> int:
    from mllm_jax.terminal import generate_file, generate_one

    if (options.prompt is None) == (options.input is None) or bool(options.input) != bool(options.output):
        raise ValueError("give either --prompt TEXT (and --image FILE), or --input FILE.jsonl and --output FILE.jsonl")
    if options.input:
        return generate_file(_answerer(options, options.rows), options.input, options.output)
    return generate_one(_answerer(options), options.prompt, options.image, as_json=options.json)


def _chat(options: argparse.Namespace) -> None:
    from mllm_jax.terminal import chat

    chat(_answerer(options), options.image)


def _import(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mllm_jax.interop.hub import local_folder
    from mllm_jax.interop.hugging_face import import_folder

    found = import_folder(local_folder(options.source), Path(options.output))
    print(f"imported {options.source} ({found.family.name}) to {options.output}")


def _export(options: argparse.Namespace) -> None:
    from mllm_jax.interop.connector_weights import export_connector
    from mllm_jax.interop.export import export
    from mllm_jax.interop.own_export import export_own
    from mllm_jax.interop.peft_adapter import export_adapter

    chosen = ["--connector-only"] * options.connector_only + ["--adapter"] * (options.adapter is not None)
    chosen += ["--format mllm"] * (options.format == "mllm")
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)}: give one of them")
    if options.adapter is not None:
        export_adapter(options.model, options.output, options.adapter, dtype=options.dtype)
        print(f"exported {options.model} to {options.output} and its adapters to {options.adapter}")
        return
    write = export_own if options.format == "mllm" else export_connector if options.connector_only else export
    write(_load(options.model), options.output, dtype=options.dtype)
    print(f"exported {options.model} to {options.output}")


def _train_tokenizer(options: argparse.Namespace) -> None:
    from data_pipelines.tokenizers.texts import train_on_files
    from data_pipelines.tokenizers.training import TokenizerTrainingConfig

    config = TokenizerTrainingConfig(vocabulary_size=options.vocabulary, kind=options.algorithm)
    skipped = train_on_files(options.inputs, options.output, config)
    left_out = "".join(f"; {count} records without text: {cause}" for cause, count in skipped.items())
    print(f"wrote {options.output}: {options.vocabulary} pieces{left_out}")


def _show(options: argparse.Namespace) -> None:
    from mllm_jax.config import load_run
    from mllm_jax.data_tools.showing import put_out, shown_stage

    run = load_run(options.run_file, options.overrides)
    page = options.output or (None if options.terminal else "show.html")
    put_out(shown_stage(run, options.stage, options.rows), page, terminal=options.terminal)


def _verify(options: argparse.Namespace) -> int:
    from mllm_jax.data_tools.verification_terminal import show_verification

    return show_verification(options.inputs, options.images, options.threads, options.report)


def _build(options: argparse.Namespace) -> None:
    from mllm_jax.data_tools.building_terminal import show_build
    from mllm_jax.data_tools.named_source import source_of

    source = source_of(options.source, options.name, options.images)
    show_build(source, options.output, options.samples_per_shard, options.processes)


def _index(options: argparse.Namespace) -> int:
    from mllm_jax.data_tools.building_terminal import show_indexing

    return show_indexing(options.shards, options.cache, options.threads)


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
