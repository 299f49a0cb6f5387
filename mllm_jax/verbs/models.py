"""The verbs on a model: `generate`, `chat`, `import`, `export`."""

import argparse

from mllm_jax.verbs.model_folder import WHAT_IS_MODEL, load
from mllm_jax.verbs.storage import THE_MODELS, add_storage, storage_of
from mllm_jax.verbs.verb import add_verb


def add_model_verbs(verbs) -> None:
    generate = add_verb(verbs, "generate", "answer one prompt, or every line of a JSONL file", _generate)
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
    add_storage(generate, THE_MODELS)

    chat = add_verb(verbs, "chat", "talk with a model in the terminal, about images too", _chat)
    chat.add_argument("--model", required=True, metavar="MODEL", help=WHAT_IS_MODEL)
    chat.add_argument("--image", action="append", default=[], metavar="FILE", help="an image to begin with")
    _add_sampling(chat)
    add_storage(chat, THE_MODELS)

    import_ = add_verb(verbs, "import", "turn a Hugging Face folder into this project's own folder", _import)
    import_.add_argument(
        "source", metavar="HF_FOLDER", help="a folder of transformers: an encoder, a decoder or a whole model"
    )
    import_.add_argument("output", metavar="OUT", help="a folder that is not there yet")

    export = add_verb(verbs, "export", "write a model as a Hugging Face folder, or as this project's own", _export)
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


def _answerer(options: argparse.Namespace, rows: int = 1):
    from mllm_jax.generation.answering import Answerer
    from mllm_jax.generation.decode import DecodingConfig
    from mllm_jax.generation.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    decoding = DecodingConfig(max_new_tokens=options.max_new_tokens, sampling=sampling, seed=options.seed, rows=rows)
    return Answerer(load(options.model), decoding, storage_of(options))


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
    write(load(options.model), options.output, dtype=options.dtype)
    print(f"exported {options.model} to {options.output}")
