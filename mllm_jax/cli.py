"""The `mllm` command; its verbs stand in `verbs/`. Nothing heavy is imported for `--help`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from mllm_jax.verbs.data import add_data_verb
from mllm_jax.verbs.models import add_model_verbs
from mllm_jax.verbs.plan import add_plan_verb
from mllm_jax.verbs.run import add_run_verbs
from mllm_jax.verbs.scoring import add_scoring_verbs
from mllm_jax.verbs.tokenizer import add_tokenizer_verb


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
    add_run_verbs(verbs)
    add_plan_verb(verbs)
    add_scoring_verbs(verbs)
    add_model_verbs(verbs)
    add_tokenizer_verb(verbs)
    add_data_verb(verbs)
    return parser
