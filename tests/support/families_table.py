"""Runs the tests that prove something of a family of models, and writes what they measured to docs/families.md.

`python -m tests.support.families_table` (`make families`) writes it anew. With the paths of some tests only these are
run, and what they prove is added to what the page says: so a new family comes onto it in seconds.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.proofs import PAGE, PROPERTY, Proven, Row, page_rows, row_of, written_row

TESTS = ("tests/parity", "tests/interop")
FAMILIES = Path("mllm_jax/interop/families")

PROOFS_TEXT = """\
# Families of models

Written by `make families` from the tests that it runs; a test keeps the page complete. A row is a `model_type` of a
Hugging Face folder's config.json. Everything is compared with the reference implementation (`transformers`; for
open_clip and OpenFlamingo their modules, written down in the tests), from random weights, in odd shapes, in float32:

- import: logits (a vision tower: hidden states) of the imported folder. The last column is the largest absolute
  difference in any test; the bound is 1e-4.
- train: the gradient of every parameter, within 0.1 % of its largest number.
- generate: greedy tokens of the exported folder are the same.
- export: `transformers` finds every tensor it wants in the exported folder, no other, and with the same numbers.

`-` is not compared, or there is nothing to compare: a vision tower generates nothing, and one of open_clip is exported
as a `clip_vision_model`.

| family | import | train | generate | export | largest difference |
|---|---|---|---|---|---|
"""

DRIFT_TEXT = """
## bfloat16

Logits computed in bfloat16 from weights in bfloat16, against the same weights in float32; weights are drawn as at the
start of a training, so the largest logits lie closer together than those of a trained model. Logits are summed and kept
in float32 in both.

| model | largest difference | mean difference | standard deviation of the logits | same largest logit |
|---|---|---|---|---|
"""

OTHERS_TEXT = """
## Other codebases

What each lists itself, counted on 25 November 2026 at the newest commit that was at hand. They count in other units, so
the numbers say what there is and not who has more.

| codebase, commit | what its lists hold |
|---|---|
| MaxText, `e591f30` of August 2026 (README, "Supported JAX models") | 8 lines of decoders: Gemma 1 to 4, Qwen 2.5 to \
3.5, DeepSeek V2 to V3.2, Kimi K2, Llama 2 to 4, GPT-OSS, GPT-3, Mistral and Mixtral; multimodal training with Gemma \
3, Gemma 4 and Llama 4 |
| LLaVA, `c121f04` of May 2024 (`llava/model`) | one architecture with 3 decoders: LLaMA and Vicuna, MPT, Mistral; \
CLIP towers |
| LAVIS, `506965b` of November 2024 (`register_model`) | 31 registered models of 9 lines: ALBEF, ALPRO, BLIP, BLIP-2 \
with InstructBLIP (8 of the 31; decoders OPT, T5, Vicuna), BLIP-Diffusion, CLIP, GPT dialogue, Img2Prompt, PnP-VQA |
| OpenFlamingo, `655f693` of October 2023 (`factory.py`) | one architecture with 5 decoders: OPT, GPT-J, GPT-NeoX \
(Pythia), LLaMA, MPT; CLIP towers of open_clip |
| Prismatic, `874c5bb` of May 2024 (`materialize.py`) | 3 kinds of decoder (LLaMA-2 and Vicuna, Mistral, Phi-2; 9 \
entries), 6 kinds of tower (CLIP, SigLIP, DINOv2, ImageNet ViT, DINOv2 with CLIP, DINOv2 with SigLIP; 13 entries) |
| nanoVLM, `4e0c096` of October 2025 (`models/config.py`) | one pairing: SigLIP 2 and SmolLM2 by pixel shuffle |
"""

COST_TEXT = """
## What a new family costs

A family is a table of (their name, our path, how to reshape) and two functions between its config.json and ours, all in
one file of `mllm_jax/interop/families/`, named in one list (`parts.py` or `choice.py`). The same table reads and
writes, scanned layers and unscanned. What no existing field of `DecoderConfig`, `ViTConfig` or a connector's config
expresses costs a field there too. Two that exist:

| file | families | lines |
|---|---|---|
"""

COST_END = """
And a row here: in a test, `proven(folder, "import", assert_close(ours, theirs))`, likewise `"train"`, `"generate"`,
`"export"`; then `make families`, or `python -m tests.support.families_table` and the paths of these tests.
"""

COUNTED = {"qwen.py": "Qwen2, Qwen3", "llava.py": "LLaVA"}


class Recorder:
    """A pytest plugin that runs only tests that prove something, and keeps what they say."""

    def __init__(self) -> None:
        self.proofs: dict[str, list[Proven]] = defaultdict(list)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if PROPERTY in getattr(item, "fixturenames", ())]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            for name, value in report.user_properties:
                if name == PROPERTY and isinstance(value, tuple):
                    proven = Proven(*value)
                    self.proofs[proven.family].append(proven)


def page(rows: dict[str, Row], drifts: list[str]) -> str:
    """The whole page."""
    table = "\n".join(written_row(family, rows[family]) for family in sorted(rows))
    drifted = "\n".join(drifts)
    counted = "\n".join(
        f"| `{name}` | {families} | {len((FAMILIES / name).read_text().splitlines())} |"
        for name, families in COUNTED.items()
    )
    return f"{PROOFS_TEXT}{table}\n{DRIFT_TEXT}{drifted}\n{OTHERS_TEXT}{COST_TEXT}{counted}\n{COST_END}"


def measured_drifts() -> list[str]:
    """The lines of the second table."""
    # JAX must not be imported before the tests have set its flags.
    from tests.support.bfloat16_drift import decoder_drift, multimodal_drift

    drifts = {"SmolLM2-135M": decoder_drift(), "DINOv2-S, MLP, SmolLM2-135M": multimodal_drift()}
    return [
        f"| {name} | {drift.largest:.3f} | {drift.mean:.4f} | {drift.spread:.3f} | {drift.agreement:.1%} |"
        for name, drift in drifts.items()
    ]


def stored_drifts() -> list[str]:
    """Those lines as they are on the page."""
    after = PAGE.read_text().partition(DRIFT_TEXT)[2] if PAGE.is_file() else ""
    return after.partition("\n\n")[0].splitlines()


def main(tests: list[str]) -> int:
    recorder = Recorder()
    failed = pytest.main([*(tests or TESTS), "-p", "no:xdist"], plugins=_named(recorder))
    if failed:
        print("Some of these tests fail; the page stays as it is.", file=sys.stderr)
        return int(failed)
    rows = page_rows() if tests else {}
    for family, proofs in recorder.proofs.items():
        said = [Proven(family, proof, rows[family].error) for proof in rows[family].proofs] if family in rows else []
        rows[family] = row_of([*said, *proofs])
    drifts = (stored_drifts() if tests else []) or measured_drifts()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(rows, drifts))
    print(f"wrote {PAGE}: {len(rows)} families")
    return 0


def _named(recorder: Recorder) -> list[Any]:
    """The recorder, registered under the name by which the `proven` fixture knows that the page is being written."""

    class Registering:
        @staticmethod
        def pytest_configure(config: pytest.Config) -> None:
            config.pluginmanager.register(recorder, PROPERTY)

    return [Registering()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
