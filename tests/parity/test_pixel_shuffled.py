"""Idefics3, SmolVLM and InternVL against transformers: two images in a row of text, random weights, float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
from mllm_jax.models.multimodal import image_tokens
from mllm_jax.models.vit import FeatureConfig
from tests.support.hugging_face_folders import randomise, text_config
from tests.support.parity import (
    assert_loads_whole,
    assert_same_gradients,
    assert_same_logits,
    drawn_rows,
    read_config,
    read_parameters,
    write_folder,
)
from tests.support.proofs import Prover

IMAGE = 60
# 34 pixels hold four whole patches of 8: what is left over must be dropped on the same side.
TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "image_size": 34,
    "patch_size": 8,
}


def idefics3(**changes: Any) -> torch.nn.Module:
    options = {"vision_config": TOWER, "text_config": text_config(vocabulary=61), "image_token_id": IMAGE} | changes
    return transformers.Idefics3ForConditionalGeneration(transformers.Idefics3Config(**options))


def smolvlm(**changes: Any) -> torch.nn.Module:
    options = {"vision_config": TOWER, "text_config": text_config(vocabulary=61), "image_token_id": IMAGE} | changes
    return transformers.SmolVLMForConditionalGeneration(transformers.SmolVLMConfig(**options))


def internvl(**changes: Any) -> torch.nn.Module:
    options = {"vision_config": TOWER, "text_config": text_config(vocabulary=61), "image_token_id": IMAGE}
    config = transformers.InternVLConfig(**options | {"tie_word_embeddings": False} | changes)
    return transformers.InternVLForConditionalGeneration(config)


MODELS: dict[str, tuple[Callable[..., torch.nn.Module], dict[str, Any]]] = {
    "idefics3": (idefics3, {}),
    "smolvlm": (smolvlm, {"scale_factor": 4}),
    "internvl": (internvl, {}),
    "internvl with biases": (
        internvl,
        {"vision_config": TOWER | {"attention_bias": True}, "vision_feature_layer": -2, "downsample_ratio": 0.25},
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    make, changes = MODELS[request.param]
    folder = tmp_path_factory.mktemp("written")
    model = randomise(make(**changes))
    model.save_pretrained(folder)
    return folder, model


def called(model: torch.nn.Module) -> Callable[..., Any]:
    """The model, given the pixels of two images a row one after the other."""
    if isinstance(model, transformers.InternVLForConditionalGeneration):
        return model
    return lambda input_ids, pixel_values: model(input_ids=input_ids, pixel_values=pixel_values.unflatten(0, (2, 2)))


@pytest.mark.parametrize("scan", [True, False])
def test_logits_and_exported_weights(
    written: tuple[Path, torch.nn.Module], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder, model = written
    config = read_config(folder, scan)
    parameters = read_parameters(folder, config)
    proven(folder, "import", assert_same_logits(config, parameters, called(model), IMAGE))
    exported = tmp_path / "exported"
    write_folder(exported, config, parameters, image_token_id=IMAGE)
    assert_loads_whole(transformers.AutoModelForImageTextToText, exported, model)
    assert read_config(exported, scan) == config
    proven(folder, "export")


@pytest.mark.parametrize("family", ["idefics3", "smolvlm", "internvl"])
def test_gradients_of_one_step(family: str, tmp_path: Path, proven: Prover) -> None:
    make, changes = MODELS[family]
    model = randomise(make(**changes))
    model.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    ours, theirs = drawn_rows(config, IMAGE)
    if family != "internvl":
        theirs["pixel_values"] = theirs["pixel_values"].unflatten(0, (2, 2))
    assert_same_gradients(config, tmp_path, model, ours, theirs)
    proven(tmp_path, "train")


def test_published_configs_count_as_published() -> None:
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
    idefics = {"model_type": "idefics3", "vision_config": tower | {"image_size": 364}, "text_config": {}}
    smolvlm = {"model_type": "smolvlm", "vision_config": tower | {"image_size": 384}, "text_config": {}}
    internvl = {"model_type": "internvl", "vision_config": {}, "text_config": {"model_type": "llama"}}
    for config, tokens in ((idefics, 169), (smolvlm | {"scale_factor": 3}, 81), (internvl, 256)):
        assert image_tokens(family_of_folder(config).from_hugging_face(config)) == tokens


def test_what_no_family_does_is_refused(tmp_path: Path) -> None:
    randomise(idefics3()).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    connectors = MLPConfig(depth=3), PixelShuffleConfig(depth=3), PixelShuffleConfig(depth=1, bias=False, norm=True)
    for connector in connectors:
        with pytest.raises(FamilyError, match="Idefics3 models have a connector of kind 'pixel_shuffle' with depth 1"):
            family_of_config(config.model_copy(update={"connector": connector}))
    unnormed = config.encoder.model_copy(update={"features": FeatureConfig(layer=-1)})
    with pytest.raises(FamilyError, match="Idefics3 models have features ="):
        family_of_config(config.model_copy(update={"encoder": unnormed}))


def test_grids_whose_positions_transformers_rounds_are_refused() -> None:
    config = {"model_type": "idefics3", "vision_config": {"image_size": 400, "patch_size": 16}, "text_config": {}}
    with pytest.raises(FamilyError, match="rounds the positions of 25 patches a side so that some are used twice"):
        family_of_folder(config).from_hugging_face(config)


@pytest.mark.parametrize("changes", [{"norm_type": "rms_norm"}, {"use_qk_norm": True}, {"use_mean_pooling": False}])
def test_towers_of_internvl_that_differ_are_refused(changes: dict[str, Any]) -> None:
    config = {"model_type": "internvl", "vision_config": changes, "text_config": {"model_type": "llama"}}
    with pytest.raises(FamilyError, match=f"InternVL: {next(iter(changes))} is"):
        family_of_folder(config).from_hugging_face(config)
