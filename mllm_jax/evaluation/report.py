"""What an evaluation leaves behind: a table to read, `scores.json` to compare, `answers.jsonl` to look into."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from mllm_jax.evaluation.baselines import HEADINGS
from mllm_jax.evaluation.evaluate import Evaluation
from mllm_jax.evaluation.metrics import BOX_THRESHOLD, Result, Total, total, total_by_kind

ALL = "all"
"""The row of all kinds together; every question counts the same."""

PARSER = (
    "normalised exact match (Unicode NFKC, case, white space, punctuation at the ends); boxes [x0,y0,x1,y1] by overlap"
)


def scores_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the scores with everything that another measurement would have to repeat."""
    template = evaluation.loaded.chat_template
    transform = evaluation.loaded.image_transform
    config = evaluation.config
    baselines = {name: evaluation.results(name) for name in HEADINGS}
    return {
        "model": evaluation.loaded.source,
        "data": evaluation.data,
        "data_sha256": evaluation.data_hash,
        "questions": len(evaluation.asked),
        "skipped": dict(sorted(evaluation.skipped.items())),
        "scores": _totals_json(evaluation.results()),
        **{f"{name}_scores": _totals_json(results) if results else None for name, results in baselines.items()},
        "chat_template": template.model_dump(mode="json") if template else None,
        "image_transform": transform.model_dump(mode="json") if transform else None,
        "decoding": {"method": "greedy", "max_new_tokens": config.max_new_tokens},
        "history": config.history,
        "parser": {"answers": PARSER, "box_threshold": BOX_THRESHOLD},
        "compute_dtype": str(evaluation.loaded.compute_dtype.__name__),
        "versions": {name: version(name) for name in ("jax", "flax", "pillow", "tokenizers")},
    }


def write_report(evaluation: Evaluation, folder: str | Path) -> None:
    """Write `scores.json` and `answers.jsonl` (one line a question, with its key) into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scores = json.dumps(scores_json(evaluation), indent=2, ensure_ascii=False)
    (folder / "scores.json").write_text(scores + "\n", encoding="utf-8")
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as lines:
        for asked in evaluation.asked:
            lines.write(json.dumps(asked.to_json(), ensure_ascii=False) + "\n")


def scores_table(evaluation: Evaluation) -> Table:
    """Return the scores of every kind beside those of the baselines."""
    totals = _totals(evaluation.results())
    asked_too = {name: results for name in HEADINGS if (results := evaluation.results(name))}
    baselines = {name: _by_kind_and_all(results) for name, results in asked_too.items()}
    has_boxes = any(each.overlap is not None for each in totals.values())
    has_losses = any(each.loss is not None for each in totals.values())
    table = Table(
        title=f"{evaluation.loaded.source} on {evaluation.data}", caption=_caption(evaluation), pad_edge=False
    )
    table.add_column("kind")
    beside = [HEADINGS[name] for name in baselines]
    headings = ["asked", "right", *(f"right, {name}" for name in beside)]
    headings += ["IoU"] if has_boxes else []
    headings += ["loss", *(f"loss, {name}" for name in beside)] if has_losses else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for kind, each in totals.items():
        others = [found.get(kind) for found in baselines.values()]
        cells = [kind, str(each.questions), f"{each.accuracy:.1%}"]
        cells += [f"{other.accuracy:.1%}" if other else "" for other in others]
        cells += [_number(each.overlap)] if has_boxes else []
        cells += [_number(total.loss if total else None) for total in (each, *others)] if has_losses else []
        table.add_row(*cells, style="bold" if kind == ALL else None)
    return table


def _caption(evaluation: Evaluation) -> str | None:
    if not evaluation.skipped:
        return None
    return "left out: " + ", ".join(f"{cause} {count}" for cause, count in sorted(evaluation.skipped.items()))


def _totals(results: Sequence[Result]) -> dict[str, Total]:
    by_kind = total_by_kind(results)
    return by_kind if len(by_kind) == 1 else by_kind | {ALL: total(results)}


def _totals_json(results: Sequence[Result]) -> dict[str, Any]:
    return {kind: {**asdict(each), "accuracy": each.accuracy} for kind, each in _by_kind_and_all(results).items()}


def _by_kind_and_all(results: Sequence[Result]) -> dict[str, Total]:
    return total_by_kind(results) | {ALL: total(results)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
