"""Trains the tiny twin of every recipe on the demo's scenes, and writes what that looks like into docs/.

    make curves                                        (after make demo, which makes the scenes)
    python benchmarks/reference_curves.py llava15_7b   (one recipe; those that it begins with must have been trained)

A recipe begins with pretrained parts, and so does its twin: with an encoder and a decoder of its own shapes that have
learned from captions and conversations what digits and words are. A recipe that begins with another one's model
begins with that one's twin. Writes docs/curves/NAME.json and NAME.svg, and docs/curves.md from all that are there.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from data_pipelines.transforms.templates import TEMPLATES
from mllm_jax.assemble import train
from mllm_jax.config import RunConfig, load_run
from mllm_jax.evaluation.evaluate import EvaluationConfig, evaluate
from mllm_jax.evaluation.metrics import total, total_by_kind
from mllm_jax.interop.imported_folder import write_imported
from mllm_jax.interop.model_folder import load_model
from mllm_jax.models.fused import encoder_parts
from mllm_jax.models.multimodal import MultimodalConfig

ROOT = Path(__file__).parents[1]
CONFIGS, PAGE, CURVES = ROOT / "configs", ROOT / "docs" / "curves.md", ROOT / "docs" / "curves"
BEGINS_WITH = {"llava15_7b_dpo": "llava15_7b", "llava15_7b_dpo_lora": "llava15_7b"}
"""Recipes that begin with the whole model that another one leaves."""
ADAMW = {"kind": "adamw", "beta2": 0.98, "weight_decay": 0.05}
BACKBONES = [
    {
        "name": "see",
        "template": "plain",
        "mixture": {"pairs": 1.0},
        "rows": 16,
        "row_length": 96,
        "images_per_row": 4,
        "steps": 1000,
        "trainable": ["**"],
        "optimizer": ADAMW,
        "schedule": {"kind": "cosine", "peak": 3.0e-3, "warmup": 0.05, "final": 0.1},
    },
    {
        "name": "talk",
        "mixture": {"chats": 1.0},
        "rows": 16,
        "row_length": 160,
        "images_per_row": 1,
        "steps": 600,
        "trainable": ["**"],
        "optimizer": ADAMW,
        "schedule": {"kind": "cosine", "peak": 1.0e-3, "warmup": 0.1},
    },
]
"""Stages that make an encoder and a decoder: captions, then conversations in the model's own template."""
MEASUREMENTS = 12
"""Times that a stage's held-out loss is measured."""
QUESTIONS = ("digit", "colour", "count")
SCORES = {
    "validation_image_to_text_recall": "text of an image found",
    "validation_matching_accuracy": "pairs told from others",
    "validation_reward_accuracy": "better answer preferred",
}
"""Held-out metrics that say what a stage has learned, and how the page calls them."""


@dataclass
class StageCurve:
    name: str
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    held_out_steps: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    """The last of each of `SCORES` that the stage has."""


@dataclass
class Curve:
    recipe: str
    stages: list[StageCurve]
    right: dict[str, float]
    """Share of held-out questions answered right, by kind; empty: the recipe does not end with conversations."""
    right_blank: dict[str, float]
    caption_loss: tuple[float, float] | None
    """Of held-out captions, in nats a token, and beside a blank image; None: the recipe does not end with captions."""


def train_twin(name: str, runs: Path) -> Path:
    """Returns the run directory of a twin that has been trained from pretrained parts."""
    output, run_file = runs / name, CONFIGS / f"{name}.yaml"
    changes = ["variant=tiny", f"output={output}", *_beginning(name, runs)]
    planned = load_run(run_file, changes)
    for stage in planned.stages:
        held_out = {f"{source}_held_out": share.model_dump() for source, share in stage.mixture.sources.items()}
        validation = {"mixture": held_out, "batches": 4, "every": max(1, stage.steps // MEASUREMENTS)}
        changes.append(f"stages.{stage.name}.validation={json.dumps(validation)}")
    _train(load_run(run_file, changes))
    return output


def _beginning(name: str, runs: Path) -> list[str]:
    """Overrides that say what the twin begins with; recipes of the same shapes share an encoder and a decoder."""
    if name in BEGINS_WITH:
        return [f"model.weights={runs / BEGINS_WITH[name]}"]
    model = load_run(CONFIGS / f"{name}.yaml", ["variant=tiny"]).model
    shapes = json.dumps([model.encoder.model_dump(mode="json"), model.decoder.model_dump(mode="json")])
    output = runs / "backbones" / hashlib.sha256(shapes.encode()).hexdigest()[:12]
    towers = [f"fused_with.{number}.weights" for number in range(len(model.encoder.fused_with))]
    keys = [f"encoder.{key}" for key in ("weights", *towers)] + ["decoder.weights"]
    folders = [output / key.removesuffix(".weights").replace(".", "_") for key in keys]
    begins = [f"model.{key}={folder}" for key, folder in zip(keys, folders, strict=True)]
    if folders[-1].is_dir():
        return begins
    changes = ["variant=tiny", f"output={output}", f"stages={json.dumps(BACKBONES)}"]
    # Whatever the recipe's own connector is: this one is thrown away.
    changes += ["model.connector={kind: mlp}", "model.tiling=null", "model.instruction_tokenizer=null"]
    _train(load_run(CONFIGS / f"{name}.yaml", changes))
    loaded = load_model(output)
    assert isinstance(loaded.config, MultimodalConfig)
    parts = {("encoder", *path): part for path, part in encoder_parts(loaded.config.encoder).items()}
    parts[("decoder",)] = loaded.config.decoder
    parameters = flatten_dict(jax.device_get(loaded.parameters))
    for folder, (path, part) in zip(folders, parts.items(), strict=True):
        description = loaded.description.model_copy(update={"model": part})
        leaves = {"/".join(key[len(path) :]): leaf for key, leaf in parameters.items() if key[: len(path)] == path}
        write_imported(folder, description, leaves.items(), loaded.tokenizer)
    return begins


def _train(config: RunConfig) -> None:
    stopped = train(config)
    if stopped:
        sys.exit(stopped)


def read_curves(output: Path) -> list[StageCurve]:
    """What a run directory's metrics say of its stages."""
    stages: dict[str, StageCurve] = {}
    for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        stage = stages.setdefault(entry["stage"], StageCurve(entry["stage"]))
        if "loss" in entry:
            stage.steps.append(entry["step"])
            stage.loss.append(round(entry["loss"], 4))
        if "validation_loss" in entry:
            stage.held_out_steps.append(entry["step"])
            stage.held_out.append(round(entry["validation_loss"], 4))
            stage.scores = {name: round(entry[name], 3) for name in SCORES if name in entry}
    return list(stages.values())


def ask(output: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of right answers to questions about held-out scenes: shown the scene, and a blank image."""
    config = EvaluationConfig(rows=64, max_new_tokens=8, loss=False)
    asked = evaluate(load_model(output), "demo/data/questions.json", config, images="demo/data/images_held_out")
    right, blank = (
        {kind: round(each.accuracy, 3) for kind, each in total_by_kind(results).items() if kind in QUESTIONS}
        for results in (asked.results(), asked.results("blank"))
    )
    return right, blank


def caption_losses(output: Path, template: str | None) -> tuple[float, float]:
    """Nats a token of the captions of held-out scenes: shown the scene, and a blank image."""
    config = EvaluationConfig(rows=64, max_new_tokens=1)
    loaded = load_model(output, chat_template=TEMPLATES[template] if template else None)
    asked = evaluate(loaded, "demo/data/pairs_held_out/*.tar", config)
    seen, blank = (total(results).loss for results in (asked.results(), asked.results("blank")))
    assert seen is not None and blank is not None
    return round(seen, 4), round(blank, 4)


def draw(curve: Curve, path: Path) -> None:
    """Training and held-out loss, stage beside stage."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "curves"
    figure, axes = plt.subplots(1, len(curve.stages), figsize=(4 * len(curve.stages), 2.6), squeeze=False)
    for stage, axis in zip(curve.stages, axes[0], strict=True):
        axis.plot(stage.steps, stage.loss, color="0.7", label="training")
        axis.plot(stage.held_out_steps, stage.held_out, color="C0", marker="o", markersize=3, label="held out")
        axis.set(title=stage.name, xlabel="step", ylabel="loss")
        axis.set_ylim(0, 1.25 * max(stage.held_out))  # What held-out losses do; training begins above the picture.
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


PAGE_TEXT = """\
# What training looks like

The tiny twin (`variant=tiny`) of every recipe in `configs/`, trained on the scenes of `make demo`; written by
`make curves`. A twin has its recipe's stages, objective, connector and kinds of encoder and decoder, in small. It
begins, as its recipe does, with an encoder and a decoder that have been trained before: in {steps} steps on captions
and conversations, with a connector that is then thrown away; those of DPO begin with the twin of LLaVA-1.5. Losses are
in nats a supervised token (an image and its text, or a pair of answers, where such are compared), held out on scenes
of digits that were never trained on. What a recipe has learned stands behind its last stage, or behind that with a
score of its own: the share of held-out questions answered right (what digit, what colour, how many), the loss of
held-out captions, both beside the same model shown a blank image; of a batch's 32 held-out images the share whose text
is found (3 %, by chance), and how often pairs and twice as many wrong ones are told apart (two thirds, by chance); how
often the better of two answers gains more than the worse.

| recipe | stage | steps | held-out loss, first to last | learned | blank image |
|---|---|---|---|---|---|
"""


def page(curves: list[dict[str, Any]]) -> str:
    """The text of docs/curves.md for what the files beside it hold, in order."""
    rows, pictures = [], []
    for curve in curves:
        for stage in curve["stages"]:
            learned, blank = _learned(curve, stage)
            losses = f"{stage['held_out'][0]:.3f} to {stage['held_out'][-1]:.3f}"
            cells = (f"`{curve['recipe']}`", stage["name"], str(stage["steps"][-1]), losses, learned, blank)
            rows.append(f"| {' | '.join(cells)} |")
        pictures.append(f"\n## {curve['recipe']}\n\n![losses of {curve['recipe']}](curves/{curve['recipe']}.svg)\n")
    head = PAGE_TEXT.format(steps=sum(stage["steps"] for stage in BACKBONES))
    return f"{head}{chr(10).join(rows)}\n{''.join(pictures)}"


def _learned(curve: dict[str, Any], stage: dict[str, Any]) -> tuple[str, str]:
    """What the page says of a stage, and of a blank image."""
    if stage["scores"]:
        return ", ".join(f"{SCORES[name]} {value:.0%}" for name, value in stage["scores"].items()), ""
    if stage is not curve["stages"][-1]:
        return "", ""
    if curve["caption_loss"]:
        seen, blank = curve["caption_loss"]
        return f"captions {seen:.3f}", f"{blank:.3f}"
    right, blank = (" / ".join(f"{curve[key][kind]:.0%}" for kind in QUESTIONS) for key in ("right", "right_blank"))
    return right, blank


def read_files() -> list[dict[str, Any]]:
    """What is in docs/curves, in order of the recipes' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CURVES.glob("*.json"))]


def main(names: list[str], runs: Path) -> None:
    CURVES.mkdir(exist_ok=True)
    twins = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("demo", "nano"))
    for name in names or sorted(twins, key=lambda twin: (twin in BEGINS_WITH, twin)):
        output = train_twin(name, runs)
        last = load_run(CONFIGS / f"{name}.yaml", ["variant=tiny"]).stages[-1]
        right, blank = ask(output) if "chats" in last.mixture.sources else ({}, {})
        captions = caption_losses(output, last.template) if "pairs" in last.mixture.sources else None
        curve = Curve(name, read_curves(output), right, blank, captions)
        (CURVES / f"{name}.json").write_text(json.dumps(asdict(curve)) + "\n", encoding="utf-8")
        draw(curve, CURVES / f"{name}.svg")
    PAGE.write_text(page(read_files()), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes; all of configs/ if none is named")
    parser.add_argument("--runs", type=Path, default=Path("runs/curves"), help="where the runs are kept")
    arguments = parser.parse_args()
    main(arguments.names, arguments.runs)
