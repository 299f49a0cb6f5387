"""The verb `tokenizer`."""

import argparse

from mllm_jax.verbs.storage import add_storage, storage_of
from mllm_jax.verbs.verb import add_verb


def add_tokenizer_verb(verbs) -> None:
    tokenizer = verbs.add_parser("tokenizer", help="train a SentencePiece tokenizer")
    actions = tokenizer.add_subparsers(title="actions", metavar="ACTION", required=True)
    train = add_verb(
        actions, "train", "train a SentencePiece tokenizer on captions, conversations or text", _train_tokenizer
    )
    train.add_argument(
        "inputs", nargs="+", metavar="FILE", help=".txt lines, .json/.jsonl conversations or .tar shards"
    )
    train.add_argument("--output", required=True, metavar="FILE.model", help="the tokenizer to write")
    train.add_argument("--vocabulary", type=int, default=32000, help="number of pieces (default: %(default)s)")
    train.add_argument("--algorithm", choices=("bpe", "unigram"), default="bpe", help="(default: %(default)s)")
    add_storage(train)


def _train_tokenizer(options: argparse.Namespace) -> None:
    from data_pipelines.tokenizers.texts import train_on_files
    from data_pipelines.tokenizers.training import TokenizerTrainingConfig

    config = TokenizerTrainingConfig(vocabulary_size=options.vocabulary, kind=options.algorithm)
    skipped = train_on_files(options.inputs, options.output, config, storage_of(options))
    left_out = "".join(f"; {count} records without text: {cause}" for cause, count in skipped.items())
    print(f"wrote {options.output}: {options.vocabulary} pieces{left_out}")
