"""Folders of models whose images are tiled: read whole, asked about odd sizes, and written for transformers to load."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from data_pipelines.assemble import empty_batch, place_row
from data_pipelines.packing import Segment
from data_pipelines.record import Record, Turn
from data_pipelines.rendered import RenderedRecord
from data_pipelines.transforms.dynamic import DynamicConfig
from data_pipelines.transforms.splitting import SplittingConfig
from data_pipelines.transforms.templates import INTERNVL, SMOLVLM, ChatTemplate
from data_pipelines.transforms.tiling import TilingConfig
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.export import export
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.hugging_face import import_folder
from mllm_jax.interop.model_folder import load_model
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, slot_features
from mllm_jax.models.presets import DECODERS, ENCODERS
from tests.support.hugging_face_folders import SPECIAL_TOKENS, randomise, text_config, tiny_tokenizer, write_image
from tests.support.proofs import Prover

SIDE = 16
SIZES = ((33, 20), (16, 16), (9, 61), (50, 47))
SHOWN = ((0,), (1,), (2, 0), (3,))
"""Which images each prompt shows."""
QUESTION = "What colour is the digit?"
TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "image_size": SIDE,
    "patch_size": 4,
}


def write_idefics3(folder: Path) -> None:
    config = transformers.Idefics3Config(
        vision_config=TOWER, text_config=text_config(), image_token_id=SPECIAL_TOKENS.index("<image>")
    )
    randomise(transformers.Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    images = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    transformers.Idefics3Processor(images, tiny_tokenizer(), image_seq_len=4).save_pretrained(folder)


def write_internvl(folder: Path) -> None:
    """As it is published, but for the file of the processor for videos, which takes a video library to make."""
    config = transformers.InternVLConfig(
        vision_config=TOWER,
        text_config=text_config(),
        image_token_id=SPECIAL_TOKENS.index("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )
    randomise(transformers.InternVLForConditionalGeneration(config)).save_pretrained(folder)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    size = {"height": SIDE, "width": SIDE}
    images = transformers.GotOcr2ImageProcessorPil(size=size, max_patches=6, image_mean=mean, image_std=std)
    images.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


class WithoutVideos(transformers.InternVLProcessor):
    """Their processor where the library for videos is missing that `AutoProcessor` would want."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        if argument is not None:
            super().check_argument_for_proper_class(argument_name, argument)


def internvl_processor(folder: Path) -> transformers.InternVLProcessor:
    """What `AutoProcessor` makes of the folder, but for videos."""
    return WithoutVideos(
        transformers.GotOcr2ImageProcessorPil.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
        image_seq_length=json.loads((folder / "processor_config.json").read_text())["image_seq_length"],
        chat_template=(folder / "chat_template.jinja").read_text(),
    )


@dataclass(frozen=True)
class Case:
    write: Callable[[Path], None]
    template: ChatTemplate
    tiling: TilingConfig
    processor: Callable[[Path], Any]
    """Loads their processor of an exported folder."""


CASES = {
    "idefics3": Case(
        write_idefics3, SMOLVLM, SplittingConfig(longest_side=3), transformers.AutoProcessor.from_pretrained
    ),
    "internvl": Case(write_internvl, INTERNVL, DynamicConfig(max_tiles=6), internvl_processor),
}


@dataclass(frozen=True)
class Exported:
    case: Case
    source: Path
    folder: Path
    ours: Answerer
    images: tuple[Path, ...]

    def record(self, shown: tuple[int, ...]) -> Record:
        parts = user_parts(QUESTION, [image_part(self.images[number]) for number in shown])
        return Record("test", (Turn("user", parts, learn=False),))

    def their_inputs(self) -> list[dict[str, torch.Tensor]]:
        processor = self.case.processor(self.folder)
        return [self._their_inputs(processor, shown) for shown in SHOWN]

    def _their_inputs(self, processor: Any, shown: tuple[int, ...]) -> dict[str, torch.Tensor]:
        content = [{"type": "image"}] * len(shown) + [{"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        pictures = [transformers.image_utils.load_image(str(self.images[number])) for number in shown]
        return processor(images=pictures, text=text, return_tensors="pt", add_special_tokens=False)


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    case.write(folder / "theirs")
    export(load_model(folder / "theirs", chat_template=case.template), folder / "exported")
    images = [write_image(folder / f"{seed}.png", seed, size) for seed, size in enumerate(SIZES)]
    ours = Answerer(load_model(folder / "exported"), DecodingConfig(max_new_tokens=6, rows=4))
    return Exported(case, folder / "theirs", folder / "exported", ours, tuple(images))


def packed_logits(ours: Answerer, records: list[Record]) -> list[np.ndarray]:
    """Logits of each record, all of them in one packed row."""
    config = ours.loaded.config
    features, shape = slot_features(config), config.encoder.image_size
    rendered: list[RenderedRecord] = [ours.rendered(record) for record in records]
    length = sum(len(each.tokens) for each in rendered) + 3
    batch = empty_batch(1, length, sum(each.slots for each in rendered) + 1, shape)
    placed = place_row(batch, 0, tuple(Segment(each, 0, 0, 0) for each in rendered), features)
    for each, record in zip(placed, records, strict=True):
        pixels = np.concatenate([image.reshape(-1, *shape, 3) for image in ours.prompt(record).images])
        batch.images[0, each.first_slot : each.first_slot + len(pixels)] = pixels
    arrays = batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index
    logits = jax.jit(Multimodal(config).apply)({"params": ours.loaded.parameters}, *map(jnp.asarray, arrays))
    return [np.asarray(logits[0, each.start : each.start + len(each.rendered.tokens)]) for each in placed]


def test_transformers_gives_the_same_tokens_and_answers(exported: Exported, proven: Prover) -> None:
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(exported.folder).eval()
    prompts = [exported.ours.prompt(exported.record(shown)) for shown in SHOWN]
    inputs = exported.their_inputs()

    assert [prompt.tokens.tolist() for prompt in prompts] == [each["input_ids"][0].tolist() for each in inputs]
    assert len({prompt.slots for prompt in prompts}) > 2
    answers = []
    for each in inputs:
        output = theirs.generate(**each, max_new_tokens=6, do_sample=False)[0, each["input_ids"].shape[1] :].tolist()
        answers.append([token for token in output if token not in exported.ours.stop_tokens])
    assert [list(answer.tokens) for answer in exported.ours.answer(prompts)] == answers
    proven(exported.folder, "generate")


def test_a_packed_row_gives_the_logits_of_transformers(exported: Exported) -> None:
    """In float64, so that the difference is the rounding of ours alone: these weights make much of it."""
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(exported.folder).double().eval()
    logits = packed_logits(exported.ours, [exported.record(shown) for shown in SHOWN])
    for ours, inputs in zip(logits, exported.their_inputs(), strict=True):
        with torch.no_grad():
            expected = theirs(**inputs | {"pixel_values": inputs["pixel_values"].double()}).logits[0].numpy()
        np.testing.assert_allclose(ours, expected[: len(ours)], atol=1e-4, rtol=0)


def test_import_export_import_keeps_every_bit(exported: Exported, tmp_path: Path) -> None:
    import_folder(exported.source, tmp_path / "imported")
    first = load_model(tmp_path / "imported", chat_template=exported.case.template)
    again = exported.ours.loaded

    assert first.config.tiling == exported.case.tiling
    assert again.description == first.description
    assert jax.tree.all(jax.tree.map(np.array_equal, again.parameters, first.parameters))


def test_processors_that_tile_otherwise_are_refused(tmp_path: Path) -> None:
    write_idefics3(tmp_path)
    file = tmp_path / "processor_config.json"
    processor = json.loads(file.read_text())
    for size in ({"longest_edge": 3 * SIDE + 2}, {"longest_edge": 7 * SIDE}, {"height": SIDE, "width": 2 * SIDE}):
        processor["image_processor"]["size"] = size
        file.write_text(json.dumps(processor))
        with pytest.raises(FamilyError, match="only a longest_edge of 1 to 6 tiles of 16 pixels"):
            load_model(tmp_path)
    processor["image_processor"]["size"] = {"longest_edge": SIDE}
    file.write_text(json.dumps(processor))
    assert load_model(tmp_path).config.tiling is None


def test_a_model_without_thumbnails_is_not_exported_as_internvl(tmp_path: Path) -> None:
    write_internvl(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs", chat_template=INTERNVL)
    model = loaded.config.model_copy(update={"tiling": DynamicConfig(thumbnail=False)})
    changed = replace(loaded, description=loaded.description.model_copy(update={"model": model}))
    with pytest.raises(ValueError, match="processor adds a thumbnail"):
        export(changed, tmp_path / "exported")


def test_tiles_whose_latest_alone_would_be_seen_are_refused() -> None:
    change = {"connector": GatedCrossAttentionConfig(), "tiling": DynamicConfig()}
    with pytest.raises(ValidationError, match="shows the decoder the latest only"):
        MultimodalConfig(encoder=ENCODERS["tiny_vit"], decoder=DECODERS["tiny_llama"], **change)
