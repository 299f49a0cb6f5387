"""Two stages, LoRA beside full tuning, and DPO, on pretrained backbones and held-out captions.

    python benchmarks/pretrained_stages.py --encoder models/dinov2-small --decoder models/smollm2-135m-instruct \
        --pairs 'shards/train/*.tar' --held-out 'shards/val/*.tar' [--output runs/pretrained] [key.path=value ...]

`align` trains the connector of configs/nano.yaml on captions. `full` goes on with connector and decoder in the model's
own template, `lora` with connector and low-rank adapters, each from what `align` left. `prefer` goes on from `full`
with DPO: an image's own caption against that of another image. Prints one JSON line: CIDEr (pycocoevalcap, which is to
be installed beside the project, and Java for its tokenizer) of greedy captions of held-out images at the start and
after each, and the margin of held-out pairs before and after DPO. What has been trained is not trained again.
"""

import argparse
import json
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.sources.shard_list import expand
from data_pipelines.transforms.templates import TEMPLATES
from mllm_jax.assemble import train
from mllm_jax.config import load_run
from mllm_jax.evaluation.evaluate import EvaluationConfig, evaluate
from mllm_jax.interop.model_folder import load_model

NANO = Path(__file__).parents[1] / "configs" / "nano.yaml"
ROWS, ROW_LENGTH, IMAGES = 4, 512, 8
ADAMW = {"kind": "adamw", "clip_norm": 1.0}
ADAPTERS = {"decoder": {"targets": ["decoder/**/attention/*", "decoder/**/feed_forward/*"], "rank": 64, "alpha": 128}}


def stage(name: str, steps: int, peak: float, **values: Any) -> dict[str, Any]:
    """A stage of rows that hold several pairs."""
    every = max(1, steps // 4)
    shape = {"rows": ROWS, "row_length": ROW_LENGTH, "images_per_row": IMAGES, "steps": steps, "optimizer": ADAMW}
    mixture = values.pop("mixture", "pairs")
    validation = {"mixture": {f"{mixture}_held_out": 1.0}, "batches": 4, "every": every}
    schedule = {"kind": "cosine", "peak": peak, "warmup": 0.1}
    objective = values.pop("objective", {"chunk_tokens": 128})
    whole = {"name": name, "mixture": {mixture: 1.0}, "validation": validation, "schedule": schedule}
    return whole | {"objective": objective} | shape | values


def stages_of(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Run name -> its stages."""
    connector = {"connector": {"parameters": ["connector/**"], "rate": 5.0}}
    tuned = {"trainable": ["connector/**", "decoder/**"], "groups": connector}
    adapted = {"trainable": ["connector/**"], "adapters": ADAPTERS}
    dpo = {"kind": "preference", "variant": {"kind": "dpo", "beta": 0.1}, "chunk_tokens": 128}
    chosen = {"trainable": ["decoder/**"], "objective": dpo, "mixture": "preferences"}
    align = {"template": "plain", "trainable": ["connector/**"]}
    return {
        "start": [stage("align", 1, 1e-12, **align)],
        "align": [stage("align", options.align_steps, 1e-3, **align)],
        "full": [stage("instruct", options.instruct_steps, 1e-4, **tuned)],
        "lora": [stage("instruct", options.instruct_steps, 5e-4, **adapted)],
        "prefer": [stage("prefer", options.prefer_steps, 1e-5, **chosen)],
    }


BEGINS_WITH = {"full": "align", "lora": "align", "prefer": "full"}


def captions(shards: str) -> Iterator[tuple[str, str]]:
    """Name of each image among the tars' members, and its caption."""
    for path in expand(shards):
        image = None
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if member.name.endswith(".txt") and image is not None and content is not None:
                    yield image, content.read().decode().strip()
                elif not member.name.endswith(".json"):
                    image = member.name


def write_preferences(shards: str, path: Path) -> None:
    """An image's own caption is better than that of the image half the data away."""
    found = list(captions(shards))
    pairs = [
        {"image": image, "prompt": "<image>", "chosen": caption, "rejected": found[place - len(found) // 2][1]}
        for place, (image, caption) in enumerate(found)
    ]
    told_apart = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in told_apart), encoding="utf-8")


def run(name: str, stages: list[dict[str, Any]], options: argparse.Namespace) -> Path:
    """Trains one run, or goes on with it."""
    output: Path = options.output / name
    sources: dict[str, Any] = {}
    for ending, shards in (("", options.pairs), ("_held_out", options.held_out)):
        preferences = options.output / f"preferences{ending}.jsonl"
        sources |= {
            f"pairs{ending}": {"kind": "webdataset", "shards": shards},
            f"preferences{ending}": {"kind": "preference_json", "files": str(preferences), "image_shards": shards},
        }
        if not preferences.exists():
            write_preferences(shards, preferences)
    begins = [f"model.encoder.weights={options.encoder}", f"model.decoder.weights={options.decoder}"]
    if name in BEGINS_WITH:
        begins = [f"model.weights={options.output / BEGINS_WITH[name]}"]
    changes = [
        f"data.sources={json.dumps(sources)}",
        f"stages={json.dumps(stages)}",
        f"output={output}",
        *begins,
        *options.overrides,
    ]
    stopped = train(load_run(NANO, changes))
    if stopped:
        sys.exit(stopped)
    return output


def cider(output: Path, template: str, options: argparse.Namespace) -> float:
    """CIDEr of greedy captions of the held-out images; a template is what the model is asked in."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    config = EvaluationConfig(rows=32, max_new_tokens=24, blank=False, loss=False, limit=options.questions)
    loaded = load_model(output, chat_template=TEMPLATES[template])
    asked = evaluate(loaded, options.held_out, config).asked
    answers = [{"question": each.question.key, "answer": each.answer.text} for each in asked]
    (output / f"captions_{template}.json").write_text(json.dumps(answers, indent=1), encoding="utf-8")
    tokenizer = PTBTokenizer()
    references = tokenizer.tokenize({key: [{"caption": each.question.reference}] for key, each in enumerate(asked)})
    said = tokenizer.tokenize({key: [{"caption": each.answer.text}] for key, each in enumerate(asked)})
    return round(float(Cider().compute_score(references, said)[0]), 4)


def margins(output: Path) -> list[float]:
    """Held-out reward margins of a preference stage, first to last."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [round(line["validation_reward_margin"], 4) for line in lines if "validation_reward_margin" in line]


def main(options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"benchmark": "pretrained_stages", "cider": {}, "minutes": {}}
    asked = {"start": ("plain", "chatml"), "align": ("plain",), "full": ("chatml",), "lora": ("chatml",)}
    for name, stages in stages_of(options).items():
        begun = time.monotonic()
        output = run(name, stages, options)
        found["minutes"][name] = round((time.monotonic() - begun) / 60, 1)
        for template in asked.get(name, ()):
            found["cider"][f"{name}, {template}"] = cider(output, template, options)
        print(json.dumps(found), file=sys.stderr, flush=True)
    found["held_out_margins"] = margins(options.output / "prefer")
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="DINOv2-S folder")
    parser.add_argument("--decoder", required=True, help="SmolLM2-135M folder")
    parser.add_argument("--pairs", required=True, help="tar shards of captioned images")
    parser.add_argument("--held-out", required=True, help="tar shards that nothing is trained on")
    parser.add_argument("--output", type=Path, default=Path("runs/pretrained"), help="(default: %(default)s)")
    parser.add_argument("--align-steps", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--instruct-steps", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--prefer-steps", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--questions", type=int, default=200, help="held-out images (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", help="key.path=value, as for mllm train")
    main(parser.parse_intermixed_args())
