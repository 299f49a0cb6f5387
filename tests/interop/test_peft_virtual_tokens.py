"""Virtual tokens of a run, loaded by peft on the base that is exported beside them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from peft import PeftModel

from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.checkpoint.checkpointer import Checkpointer
from mllm_jax.checkpoint.description import make_description
from mllm_jax.checkpoint.layout import stage_folder
from mllm_jax.cli import main
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.models.adapters import with_abstract_adapters
from mllm_jax.models.layers.low_rank import LowRankConfig
from mllm_jax.models.multimodal import Multimodal
from mllm_jax.models.parameters import logical_axes
from mllm_jax.models.virtual_tokens import (
    PrefixTuningConfig,
    PromptTuningConfig,
    VirtualTokensConfig,
    virtual_paths,
    with_abstract_virtual_tokens,
)
from tests.support.hugging_face_folders import write_llava
from tests.support.parity import drawn_rows

LORA = {"decoder/blocks/attention/query": LowRankConfig(targets=("**",), rank=2)}
KINDS: dict[str, VirtualTokensConfig] = {
    "prompt": PromptTuningConfig(kind="prompt_tuning", count=4),
    "prefix": PrefixTuningConfig(kind="prefix_tuning", count=4),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("llava") / "theirs"
    write_llava(folder)
    return load_model(folder, chat_template=VICUNA_V1)


def save_run(run: Path, loaded: LoadedModel, config: VirtualTokensConfig) -> None:
    """A run whose one stage has trained the connector, a low-rank adapter and virtual tokens to random values."""
    shapes, _ = with_abstract_adapters(LORA, loaded.parameters, logical_axes(loaded.config))
    shapes, _ = with_abstract_virtual_tokens(config, loaded.config.decoder, shapes, {})
    random, virtual = np.random.default_rng(0), virtual_paths(shapes)
    drawn = {
        path: (0.7 if path in virtual else 0.2) * random.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(shapes, sep="/").items()
        if path in virtual or "/adapter/" in path
    }
    low_rank = {path: each.model_dump(mode="json") for path, each in LORA.items()}
    files, described = loaded.tokenizer.files(), {"model": loaded.description.model_dump(mode="json")}
    description = make_description(described, "soft", (), low_rank, files, config.model_dump(mode="json"))
    checkpointer = Checkpointer(stage_folder(run, 0, "soft"), keep=1)
    checkpointer.save_frozen({part: loaded.parameters[part] for part in ("encoder", "decoder")})
    connector = flatten_dict({"connector": loaded.parameters["connector"]}, sep="/")
    trained = jax.tree.map(jnp.asarray, unflatten_dict(drawn | connector, sep="/"))
    checkpointer.save(1, trained, {"count": np.zeros(())}, {}, description)
    checkpointer.wait()
    checkpointer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_them_and_gives_our_logits(kind: str, loaded: LoadedModel, tmp_path: Path) -> None:
    save_run(tmp_path / "run", loaded, KINDS[kind])
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    assert not main(["export", str(tmp_path / "run"), str(base), "--adapter", str(adapter)])
    model = transformers.LlavaForConditionalGeneration.from_pretrained(base).eval()
    adapted = PeftModel.from_pretrained(model, adapter).eval()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)

    ours, theirs = drawn_rows(loaded.config, model.config.image_token_id)
    parameters = load_model(tmp_path / "run").parameters
    expected = jax.jit(Multimodal(loaded.config).apply)({"params": parameters}, *ours)
    with torch.no_grad():
        found = adapted(**theirs, attention_mask=torch.ones_like(theirs["input_ids"])).logits
        plain = adapted.get_base_model()(**theirs).logits
    found = found[:, -expected.shape[1] :].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - plain.numpy()).max() > 1e-2


def test_they_cannot_be_merged(loaded: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "run", loaded, KINDS["prompt"])
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "merged"), "--merge"])
    assert "cannot be merged into weights. Export with --adapter" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
