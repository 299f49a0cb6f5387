"""The verbs that score: `eval`, `score`."""

import argparse

from mllm_jax.verbs.model_folder import WHAT_IS_MODEL, load
from mllm_jax.verbs.storage import THE_MODELS, add_storage, storage_of
from mllm_jax.verbs.verb import add_verb


def add_scoring_verbs(verbs) -> None:
    evaluate = add_verb(verbs, "eval", "score a model's answers, beside the same model shown other images", _evaluate)
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
    add_storage(evaluate, THE_MODELS)

    score = add_verb(
        verbs, "score", "write preference pairs with a model's log-probabilities, as a cached reference", _score
    )
    score.add_argument("model", metavar="MODEL", help=WHAT_IS_MODEL)
    score.add_argument("--data", required=True, metavar="PAIRS", help="preference pairs (.json, .jsonl)")
    score.add_argument("--images", help="folder of the images that pairs name (default: beside the data)")
    score.add_argument("--output", required=True, metavar="FILE.jsonl", help="where the pairs and their scores go")
    score.add_argument("--rows", type=int, default=8, help="answers scored at once (default: %(default)s)")
    score.add_argument("--template", metavar="NAME", help="chat template to write with (default: the model's own)")
    add_storage(score, THE_MODELS)


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
    loaded = load(options.model, options.template)
    evaluation = show_evaluation(loaded, options.data, config, options.images, storage_of(options))
    if options.output:
        write_report(evaluation, options.output)
        print(f"scores and answers: {options.output}")


def _score(options: argparse.Namespace) -> None:
    from mllm_jax.generation.answering import Answerer
    from mllm_jax.generation.decode import DecodingConfig
    from mllm_jax.terminal import show_scoring

    answerer = Answerer(load(options.model, options.template), DecodingConfig(rows=options.rows), storage_of(options))
    show_scoring(answerer, options.data, options.output, options.images)
