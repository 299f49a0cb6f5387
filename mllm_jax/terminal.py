"""What the verbs show and ask in the terminal."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from data_pipelines.storage import Storage
from data_pipelines.transforms.image_error import ImageError
from mllm_jax.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from mllm_jax.evaluation.preference_scores import score_pairs
from mllm_jax.evaluation.report import scores_table
from mllm_jax.generation.answering import Answerer
from mllm_jax.generation.batch import answer_file, answer_prompt
from mllm_jax.generation.chat import ChatSession
from mllm_jax.interop.model_folder import LoadedModel

CHAT_HELP = "/image FILE shows an image, /new begins again, /quit (or Ctrl-D) leaves."


def show_evaluation(
    loaded: LoadedModel, data: str, config: EvaluationConfig, images: str | None, storage: Storage | None = None
) -> Evaluation:
    """Evaluates with a progress line and prints the table of scores."""
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("questions", total=config.limit)
        evaluation = evaluate(loaded, data, config, images, lambda _: progress.advance(task), storage)
    console.print(scores_table(evaluation))
    for cause, count in sorted(evaluation.skipped.items()):
        console.print(f"skipped {count}: {cause}")
    return evaluation


def show_scoring(answerer: Answerer, data: str, output: str, images: str | None) -> None:
    """Scores preference pairs with a progress line and prints what was left out."""
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("pairs", total=None)
        scored = score_pairs(answerer, data, output, images, lambda: progress.advance(task))
    for cause, count in sorted(scored.skipped.items()):
        console.print(f"skipped {count}: {cause}")
    print(f"wrote {output}: {scored.pairs} pairs with the scores of {answerer.loaded.source}")


def generate_one(answerer: Answerer, prompt: str, images: list[str], *, as_json: bool) -> int:
    """Prints the answer to one prompt; returns the exit code."""
    try:
        answer = answer_prompt(answerer, prompt, images)
    except ImageError as error:
        raise ValueError(f"{', '.join(images)}: {error}") from error
    if as_json:
        facts = {"answer": answer.text, "tokens": list(answer.tokens), "finished": answer.finished}
        print(json.dumps({"prompt": prompt, "images": images, **facts}, ensure_ascii=False))
    else:
        print(answer.text)
    return 0


def generate_file(answerer: Answerer, source: str, target: str) -> int:
    """Answers the lines of a file; returns 1 if some of them could not be answered."""
    counts = answer_file(answerer, Path(source), Path(target))
    print(f"{target}: {counts.answered} answered, {counts.failed} failed", file=sys.stderr)
    return 1 if counts.failed else 0


def chat(answerer: Answerer, images: list[str]) -> None:
    """Talks until the input ends."""
    session = ChatSession(answerer)
    for image in images:
        _show(session, image)
    print(CHAT_HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/new":
            session.forget()
        elif command == "/image":
            _show(session, rest.strip())
        elif command.startswith("/"):
            print(f"there is no command {command}. {CHAT_HELP}")
        elif line:
            _ask(session, line)


def _show(session: ChatSession, image: str) -> None:
    try:
        session.show(image)
    except (OSError, ImageError) as error:
        print(f"{image}: {error}")


def _ask(session: ChatSession, question: str) -> None:
    try:
        for piece in session.ask(question):
            print(piece, end="", flush=True)
        print()
    except ValueError as error:
        print(f"\n{error} Begin again with /new.")
