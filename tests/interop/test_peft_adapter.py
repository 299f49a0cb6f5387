"""Low-rank adapters of a run, loaded by peft on the base that is exported beside them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from peft import PeftModel
from safetensors.numpy import load_file

from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.checkpoint.checkpointer import Checkpointer
from mllm_jax.checkpoint.description import make_description
from mllm_jax.checkpoint.layout import stage_folder
from mllm_jax.cli import main
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.interop.peft_adapter import AdapterError, export_adapter
from mllm_jax.models.adapters import with_abstract_adapters
from mllm_jax.models.layers.low_rank import LowRankConfig
from mllm_jax.models.parameters import logical_axes
from tests.support.hugging_face_folders import write_llava

LORA = LowRankConfig(targets=("**",), rank=3, alpha=5.0, dropout=0.1)
DORA = LowRankConfig(targets=("**",), rank=3, alpha=5.0, decomposed=True)
ATTENTION = tuple(f"decoder/blocks/attention/{name}" for name in ("query", "key", "value", "output"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("llava") / "theirs"
    write_llava(folder)
    return load_model(folder, chat_template=VICUNA_V1)


def save_adapted(run: Path, loaded: LoadedModel, adapters: dict[str, LowRankConfig]) -> None:
    """A run whose one stage has trained the connector, and these adapters to random values."""
    shapes, _ = with_abstract_adapters(adapters, loaded.parameters, logical_axes(loaded.config))
    random = np.random.default_rng(0)
    drawn = {
        path: 1.0 * path.endswith("magnitude") + 0.2 * random.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(shapes, sep="/").items()
        if "/adapter/" in path
    }
    stage = stage_folder(run, 0, "instruct")
    described = {path: config.model_dump(mode="json") for path, config in adapters.items()}
    description = make_description(
        {"model": loaded.description.model_dump(mode="json")}, "instruct", (), described, loaded.tokenizer.files()
    )
    checkpointer = Checkpointer(stage, keep=1)
    checkpointer.save_frozen({part: loaded.parameters[part] for part in ("encoder", "decoder")})
    connector = flatten_dict({"connector": loaded.parameters["connector"]}, sep="/")
    trained = jax.tree.map(jax.numpy.asarray, unflatten_dict(drawn | connector, sep="/"))
    checkpointer.save(1, trained, {"count": np.zeros(())}, {}, description)
    checkpointer.wait()
    checkpointer.close()


def logits(model: torch.nn.Module) -> np.ndarray:
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits.numpy()


ADAPTERS = {
    "lora": dict.fromkeys((*ATTENTION, "decoder/blocks/feed_forward/down", "connector/layers_1"), LORA),
    "dora": dict.fromkeys(ATTENTION, DORA),
    "two ranks": dict.fromkeys(ATTENTION, LORA) | {ATTENTION[0]: LORA.model_copy(update={"rank": 2, "alpha": 1.0})},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_peft_loads_the_adapters_and_gives_the_merged_models_logits(
    kind: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    save_adapted(tmp_path / "run", loaded, ADAPTERS[kind])
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    assert not main(["export", str(tmp_path / "run"), str(base), "--adapter", str(adapter)])
    assert not main(["export", str(tmp_path / "run"), str(merged), "--merge"])
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(base).eval()
    plain = logits(theirs)
    adapted = PeftModel.from_pretrained(theirs, adapter).eval()
    expected = logits(transformers.LlavaForConditionalGeneration.from_pretrained(merged).eval())
    np.testing.assert_allclose(logits(adapted), expected, atol=1e-4)
    assert np.abs(expected - plain).max() > 1e-2
    parts = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert len(parts) == len(load_file(adapter / "adapter_model.safetensors")) / (3 if kind == "dora" else 2)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_what_peft_cannot_hold_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    save_adapted(tmp_path / "mixed", loaded, {ATTENTION[0]: LORA, ATTENTION[1]: DORA})
    with pytest.raises(AdapterError, match=r"peft keeps one value of decomposed .* Export with --merge"):
        export_adapter(tmp_path / "mixed", tmp_path / "base", tmp_path / "adapter")
    assert not (tmp_path / "base").exists()
    save_adapted(tmp_path / "tower", loaded, {"encoder/blocks/attention/query": LORA})
    with pytest.raises(AdapterError, match=r"encoder/blocks/attention/query has .* Export with --merge"):
        export_adapter(tmp_path / "tower", tmp_path / "base", tmp_path / "adapter")
    save_adapted(tmp_path / "none", loaded, {})
    with pytest.raises(ValueError, match="has no low-rank adapters"):
        export_adapter(tmp_path / "none", tmp_path / "base", tmp_path / "adapter")
