"""Preference pairs rendered: the same prompt with the better and with the worse answer."""

from dataclasses import replace

import numpy as np

from data_pipelines.lanes import Render
from data_pipelines.record import Record
from data_pipelines.rendered import RenderedRecord, RenderError


def render_preference(record: Record, render: Render, scored: bool = False) -> RenderedRecord:
    """Renders both answers of a pair, of which the last turns alone are supervised.

    Args:
        record: a preference pair.
        render: renders a conversation.
        scored: whether what a reference model said of the pair is needed.

    Raises:
        ValueError: the record is no pair, or no reference model has scored it, or one that read other tokens.
        RenderError: as `render`; or the answers are the same tokens.
    """
    if record.rejected is None:
        raise ValueError(
            f"{record.key} has one answer, but the stage's objective compares two. Draw from sources of kind "
            "preference_json, or records built from such, alone; or take another objective."
        )
    before, better = record.turns[:-1], record.turns[-1]
    asked = tuple(replace(turn, learn=False) for turn in before)
    chosen, rejected = (
        render(Record(record.key, (*asked, replace(answer, learn=True)))) for answer in (better, record.rejected)
    )
    if np.array_equal(chosen.tokens, rejected.tokens):
        raise RenderError("equal_answers", "chosen and rejected are the same tokens")
    return replace(chosen, rejected=rejected, reference=_reference(record, chosen, rejected) if scored else None)


def _reference(record: Record, chosen: RenderedRecord, rejected: RenderedRecord) -> tuple[float, float]:
    again = "Score the pairs with `mllm score` by the model that this stage begins with and the stage's chat template"
    if record.reference is None:
        raise ValueError(
            f"{record.key} has no reference_chosen, reference_rejected and reference_tokens, but the stage's "
            f"objective reads them (reference: cached). {again}, or set reference to live."
        )
    lengths = len(chosen.tokens), len(rejected.tokens)
    if record.reference.tokens != lengths:
        raise ValueError(
            f"{record.key} was scored by a reference model that read {list(record.reference.tokens)} tokens, but here "
            f"the answers take {list(lengths)}: the chat template, the tokenizer or the image size is another. {again}."
        )
    return record.reference.chosen, record.reference.rejected
