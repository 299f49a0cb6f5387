"""The verbs on a run file: `train`, `config`."""

import argparse

from mllm_jax.verbs.verb import add_verb


def add_run_verbs(verbs) -> None:
    train = add_verb(verbs, "train", "run the stages of a run file, going on where an earlier start stopped", _train)
    config = add_verb(verbs, "config", "print the fully resolved run, or the JSON schema of run files", _config)
    for parser, nargs in ((train, None), (config, "?")):
        parser.add_argument("run_file", metavar="RUN.yaml", nargs=nargs, help="the run file")
        parser.add_argument("overrides", metavar="key.path=value", nargs="*", help="replace a value of the run file")
    config.add_argument("--schema", action="store_true", help="print the JSON schema that editors check run files with")


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
