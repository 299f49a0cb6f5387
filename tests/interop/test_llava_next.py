"""LLaVA-NeXT folders: read whole, asked about images of odd sizes, and written for transformers to load."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from data_pipelines.record import Record, Turn
from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import ChatSession, image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.generation.prompts import Prompt, pad_prompts
from mllm_jax.interop.equivalents import with_identity_layer
from mllm_jax.interop.export import export
from mllm_jax.interop.hugging_face import import_folder
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.multimodal import slot_features
from mllm_jax.models.parameters import make_model
from tests.support.hugging_face_folders import write_image, write_llava_next
from tests.support.proofs import Prover

SIZES = ((33, 20), (16, 16), (9, 61), (50, 47))
QUESTION = "What colour is the digit?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What transformers wrote, and what was exported of it."""
    folder = tmp_path_factory.mktemp("llava_next")
    write_llava_next(folder / "theirs")
    export(load_model(folder / "theirs", chat_template=VICUNA_V1), folder / "exported")
    return folder / "theirs", folder / "exported"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [write_image(folder / f"{seed}.png", seed, size) for seed, size in enumerate(SIZES)]


def asked(shown: list[Path]) -> Record:
    return Record("test", (Turn("user", user_parts(QUESTION, [image_part(path) for path in shown]), learn=False),))


def their_inputs(processor: transformers.LlavaNextProcessor, shown: list[Path]) -> dict[str, torch.Tensor]:
    content = [{"type": "image"}] * len(shown) + [{"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pictures = [transformers.image_utils.load_image(str(path)) for path in shown]
    return processor(images=pictures, text=text, return_tensors="pt", add_special_tokens=False)


def our_logits(ours: Answerer, prompts: list[Prompt]) -> list[np.ndarray]:
    config = ours.loaded.config
    batch, lengths = pad_prompts(prompts, slot_features(config), config.encoder.image_size, rows=len(prompts))
    arrays = batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index
    logits = jax.jit(make_model(config).apply)({"params": ours.loaded.parameters}, *map(jnp.asarray, arrays))
    return [np.asarray(row[:length]) for row, length in zip(logits, lengths, strict=True)]


def test_transformers_gives_the_same_tokens_logits_and_answers(
    folders: tuple[Path, Path], images: list[Path], proven: Prover
) -> None:
    theirs = transformers.LlavaNextForConditionalGeneration.from_pretrained(folders[1]).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders[1])
    assert isinstance(processor, transformers.LlavaNextProcessor)
    ours = Answerer(load_model(folders[1]), DecodingConfig(max_new_tokens=6, rows=4))
    shown = [[images[0]], [images[1]], [images[2], images[0]], [images[3]]]
    prompts = [ours.prompt(asked(paths)) for paths in shown]
    inputs = [their_inputs(processor, paths) for paths in shown]

    assert [prompt.tokens.tolist() for prompt in prompts] == [each["input_ids"][0].tolist() for each in inputs]
    assert len({prompt.slots for prompt in prompts}) > 1
    answers = []
    for logits, each in zip(our_logits(ours, prompts), inputs, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(logits, theirs(**each).logits[0].numpy(), atol=1e-4)
        output = theirs.generate(**each, max_new_tokens=6, do_sample=False)[0, each["input_ids"].shape[1] :].tolist()
        answers.append([token for token in output if token not in ours.stop_tokens])
    assert [list(answer.tokens) for answer in ours.answer(prompts)] == answers
    proven(folders[1], "generate")


def test_import_export_import_keeps_every_bit(folders: tuple[Path, Path], tmp_path: Path) -> None:
    import_folder(folders[0], tmp_path / "imported")
    first = load_model(tmp_path / "imported", chat_template=VICUNA_V1)
    again = load_model(folders[1])

    assert first.config.tiling == AnyResConfig(grids=((1, 2), (2, 1), (2, 2)))
    assert again.description == first.description
    assert jax.tree.all(jax.tree.map(np.array_equal, again.parameters, first.parameters))


def test_a_chat_shows_images_of_any_size(folders: tuple[Path, Path], images: list[Path]) -> None:
    ours = Answerer(load_model(folders[1]), DecodingConfig(max_new_tokens=4))
    chat = ChatSession(ours)
    chat.show(images[2])

    assert ours.pixels(image_part(images[2])).shape == (3, 16, 16, 3)
    assert "".join(chat.ask(QUESTION)).strip() == ours.answer([ours.prompt(asked([images[2]]))])[0].text


def test_a_linear_connector_keeps_its_newline_on_the_way_out(folders: tuple[Path, Path]) -> None:
    loaded = load_model(folders[1])
    connector = {name: loaded.parameters["connector"][name] for name in ("layers_0", "newline")}
    model = loaded.config.model_copy(update={"connector": LinearConfig()})
    linear = replace(
        loaded,
        description=loaded.description.model_copy(update={"model": model}),
        parameters={**loaded.parameters, "connector": connector},
    )

    assert sorted(with_identity_layer(linear).parameters["connector"]) == ["layers_0", "layers_1", "newline"]


@pytest.mark.parametrize("change", [{"mode": "pad"}, {"mode": "crop"}])
def test_a_base_tile_that_their_processor_does_not_make_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, str]
) -> None:
    loaded = load_model(folders[1])
    transform = loaded.image_transform.model_copy(update=change)
    changed = LoadedModel(
        loaded.description.model_copy(update={"image_transform": transform}),
        loaded.parameters,
        loaded.tokenizer,
        loaded.source,
    )
    with pytest.raises(ValueError, match="squashes an image into its base tile"):
        export(changed, tmp_path / "exported")
