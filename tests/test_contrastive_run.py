"""An encoder is trained from captioned images alone, and goes out as a vision tower."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from mllm_jax.assemble import make_ingredients
from mllm_jax.config import load_run
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import LoadedModel
from mllm_jax.models.vit import FeatureConfig, ViT
from mllm_jax.run_file import RunFileError
from tests.support.captioned_colours import write_captioned_colours
from tests.support.run_files import finished
from tests.support.small_tokenizers import write_bert

RUN_FILE = """
extends: base.yaml
output: {folder}/{variant}
model:
  encoder:
    preset: {preset}
    architecture: {{width: 32, feed_forward_width: 32}}
  connector: {{kind: linear}}
  decoder:
    architecture: {{width: 32, kv_heads: 2, head_width: 16, feed_forward_width: 32, attention: {attention}}}
stages:
  - name: compare
    mixture: {{pairs: 1}}
    validation: {{mixture: {{held_out: 1}}, batches: 4, every: 60}}
    objective: {{kind: contrastive, variant: {variant}, text_tokens: 8, {own}}}
    rows: 8
    row_length: 16
    images_per_row: 2
    steps: 60
    trainable: ["encoder/**", "decoder/**"]
    schedule: {{peak: 1e-2, warmup: 0.1}}
"""
VARIANTS: dict[str, dict[str, Any]] = {
    "clip": {"preset": "clip_vit_l14_336", "attention": "causal", "own": "width: 16"},
    "siglip": {"preset": "siglip_so400m_14_384", "attention": "prefix", "own": "initial_bias: -3"},
}
TOWERS = {"clip": transformers.CLIPVisionModel, "siglip": transformers.SiglipVisionModel}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrastive")
    write_captioned_colours(folder)
    write_bert(folder / "bert")
    for variant, values in VARIANTS.items():
        (folder / f"{variant}.yaml").write_text(RUN_FILE.format(folder=folder, variant=variant, **values))
    return folder


def trained(path: Path) -> LoadedModel:
    config = load_run(path)
    return finished(config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_held_out_pairs_are_found_and_the_encoder_is_exported(variant: str, folder: Path, tmp_path: Path) -> None:
    model = trained(folder / f"{variant}.yaml")
    lines = [json.loads(line) for line in (folder / variant / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 60 and losses[-1] < 0.5 * losses[0]
    assert {"scale", "image_to_text_recall", "gradient_norm"} <= lines[0].keys()
    assert ("bias" in lines[0]) == (variant == "siglip")
    for direction in ("image_to_text", "text_to_image"):
        assert lines[-1][f"validation_{direction}_recall"] > 0.7, lines[-1]  # By chance: 1 / 16.

    tower = replace(
        model,
        description=model.description.model_copy(update={"model": model.config.encoder}),
        parameters=model.parameters["encoder"],
    )
    export(tower, tmp_path / "tower")
    theirs = TOWERS[variant].from_pretrained(tmp_path / "tower").eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    config = model.config.encoder
    normalised = (pixels / 255.0 - np.array(config.pixel_mean)) / np.array(config.pixel_std)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32), output_hidden_states=True
        )
    features = FeatureConfig(layer=-1, keep_class_token=config.class_token)
    ours = ViT(config.model_copy(update={"features": features})).apply(
        {"params": tower.parameters}, jax.numpy.asarray(pixels)
    )
    np.testing.assert_allclose(ours, expected.hidden_states[-1], rtol=0, atol=1e-4)


def test_run_files_that_cannot_compare_are_refused(folder: Path) -> None:
    for change, message in [
        ("stages.compare.accumulate=2", "accumulate: found 2, expected 1"),
        ("stages.compare.objective.variant=clop", "found 'clop', expected 'clip' or 'siglip'"),
        ("stages.compare.images_per_row=3", "row_length: found 16, expected at least 24"),
    ]:
        with pytest.raises(RunFileError, match=message):
            load_run(folder / "clip.yaml", [change])
    config = load_run(folder / "clip.yaml", [f"model.tokenizer={folder}/bert"])
    with pytest.raises(ValueError, match=r"stages.0 \(compare\): model.tokenizer: the tokenizer has no end token"):
        make_ingredients(config)
