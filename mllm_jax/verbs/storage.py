"""The option `--storage` of verbs that read data or images which no run file of theirs says how to read."""

import argparse

THE_MODELS = "MODEL's own, if that is a run"


def add_storage(parser: argparse.ArgumentParser, otherwise: str = "the defaults") -> None:
    parser.add_argument(
        "--storage", metavar="RUN", help=f"run file or run whose data.storage says how to read (default: {otherwise})"
    )


def storage_of(options: argparse.Namespace):
    """Opens what the option says, or what the run of the verb's model does."""
    from mllm_jax.chosen_storage import chosen_storage

    return chosen_storage(options.storage, getattr(options, "model", None))
