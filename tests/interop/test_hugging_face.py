"""Folders that transformers writes are read whole, and those written here are read by transformers as they are."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file

from data_pipelines.record import Record, Turn
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.templates import TEMPLATES, VICUNA_V1
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.generation.prompts import pad_prompts
from mllm_jax.interop.export import export
from mllm_jax.interop.hugging_face import import_folder
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.parameters import make_model
from tests.support.hugging_face_folders import write_decoder, write_image, write_llava, write_tower
from tests.support.parameters import drawn_parameters
from tests.support.proofs import Prover
from tests.support.small_tokenizers import sentencepiece_model

FAMILIES = ("clip", "siglip", "dinov2")
QUESTIONS = ("What colour is the digit?", "How many digits are there? one, two or three", "red", "Describe the image.")


def answerer_of(path: Path, new_tokens: int = 6) -> Answerer:
    return Answerer(load_model(path, chat_template=VICUNA_V1), DecodingConfig(max_new_tokens=new_tokens, rows=4))


def asked(question: str, image: Path) -> Record:
    return Record("test", (Turn("user", user_parts(question, [image_part(image)]), learn=False),))


def their_inputs(processor: transformers.LlavaProcessor, question: str, image: Path) -> dict[str, torch.Tensor]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=Image.open(image), text=text, return_tensors="pt", add_special_tokens=False)


def exported(source: Path, folder: Path) -> Path:
    export(load_model(source, chat_template=VICUNA_V1), folder)
    return folder


@pytest.mark.parametrize(("family", "tied"), [("clip", False), ("siglip", True), ("dinov2", False)])
def test_transformers_gives_the_same_logits_and_answers(
    tmp_path: Path, family: str, tied: bool, proven: Prover
) -> None:
    write_llava(tmp_path / "theirs", family, tied)
    folder = exported(tmp_path / "theirs", tmp_path / "exported")
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, transformers.LlavaProcessor)
    ours = answerer_of(folder)
    images = [write_image(tmp_path / f"{seed}.png", seed, (20 + seed, 26)) for seed in range(len(QUESTIONS))]
    prompts = [ours.prompt(asked(*both)) for both in zip(QUESTIONS, images, strict=True)]
    inputs = [their_inputs(processor, *both) for both in zip(QUESTIONS, images, strict=True)]

    assert [prompt.tokens.tolist() for prompt in prompts] == [each["input_ids"][0].tolist() for each in inputs]
    if family == "clip":  # The other families' logits are compared below, at other sizes.
        assert_logits_equal(ours, prompts, theirs, inputs)
    answers = [list(answer.tokens) for answer in ours.answer(prompts)]
    assert answers == [their_answer(theirs, each, ours.stop_tokens) for each in inputs]
    proven(folder, "generate")


def assert_logits_equal(ours: Answerer, prompts, theirs, inputs) -> None:
    batch, lengths = pad_prompts(prompts, ours.image_tokens, ours.loaded.config.encoder.image_size, rows=len(prompts))
    arrays = (batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index)
    apply = jax.jit(make_model(ours.loaded.config).apply)
    logits = np.asarray(apply({"params": ours.loaded.parameters}, *map(jnp.asarray, arrays)))
    for row, each in enumerate(inputs):
        with torch.no_grad():
            expected = theirs(**each).logits[0].numpy()
        np.testing.assert_allclose(logits[row, : lengths[row]], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "vicuna_v1", "llama2", "chatml"])
def test_the_processor_reads_questions_as_a_sentencepiece_model_does_here(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("bpe"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model", ("<image>", "<|im_start|>", "<|im_end|>"))
    write_llava(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    decoder = loaded.config.decoder.model_copy(update={"vocab_size": tokenizer.vocabulary_size})
    model = loaded.config.model_copy(update={"decoder": decoder})
    description = loaded.description.model_copy(update={"model": model, "chat_template": TEMPLATES[name]})
    export(LoadedModel(description, drawn_parameters(model), tokenizer, "drawn"), tmp_path / "exported")
    ours = Answerer(load_model(tmp_path / "exported"), DecodingConfig())
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    image = write_image(tmp_path / "image.png")
    for question in (*QUESTIONS, "  red, 3.5 \n"):
        theirs = their_inputs(processor, question, image)["input_ids"][0].tolist()
        assert ours.prompt(asked(question, image)).tokens.tolist() == theirs


def their_answer(model, inputs: dict[str, torch.Tensor], stop_tokens: tuple[int, ...]) -> list[int]:
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    return [token for token in answer if token not in stop_tokens]


def leaves(loaded: LoadedModel) -> dict[str, bytes]:
    flat = jax.tree_util.tree_leaves_with_path(loaded.parameters)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in flat}


@pytest.mark.parametrize("family", FAMILIES)
def test_import_export_import_keeps_every_bit(tmp_path: Path, family: str) -> None:
    write_llava(tmp_path / "theirs", family)
    import_folder(tmp_path / "theirs", tmp_path / "imported")
    first = load_model(tmp_path / "imported", chat_template=VICUNA_V1)
    export(first, tmp_path / "exported", shard_bytes=20_000)
    assert len(list((tmp_path / "exported").glob("*.safetensors"))) > 1
    import_folder(tmp_path / "exported", tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert leaves(again) == leaves(first)
    assert again.description == first.description
    assert again.tokenizer.files() == first.tokenizer.files()
    direct = load_model(tmp_path / "theirs", chat_template=VICUNA_V1)
    assert leaves(direct) == leaves(first)


def test_bfloat16_weights_stay_what_they_are(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "theirs").bfloat16()
    model.save_pretrained(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "imported")
    loaded = load_model(tmp_path / "imported", chat_template=VICUNA_V1)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.parameters)} == {"bfloat16"}
    export(loaded, tmp_path / "exported")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "exported"))
    assert {name: array.tobytes() for name, array in before.items()} == {
        name: array.tobytes() for name, array in after.items()
    }


def test_a_language_model_alone_answers_as_in_transformers(tmp_path: Path, proven: Prover) -> None:
    write_decoder(tmp_path / "theirs", tied=True)
    import_folder(tmp_path / "theirs", tmp_path / "imported")
    ours = answerer_of(tmp_path / "imported")
    folder = tmp_path / "exported"
    export(ours.loaded, folder, shard_bytes=10_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": QUESTIONS[1]}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    record = Record("test", (Turn("user", user_parts(QUESTIONS[1], []), learn=False),))
    prompt = ours.prompt(record)
    assert prompt.tokens.tolist() == inputs["input_ids"][0].tolist()
    assert list(ours.answer([prompt])[0].tokens) == their_answer(theirs, inputs, ours.stop_tokens)
    proven(folder, "generate")


def test_positions_are_resized_for_towers_that_transformers_does_not_resize(tmp_path: Path) -> None:
    write_llava(tmp_path / "theirs", "siglip")
    loaded = load_model(tmp_path / "theirs", chat_template=VICUNA_V1)
    encoder = loaded.config.encoder.model_copy(update={"image_size": (24, 24), "position_grid": (4, 4)})
    model = loaded.config.model_copy(update={"encoder": encoder})
    description = loaded.description.model_copy(
        update={"model": model, "image_transform": ImageTransformConfig(size=(24, 24), fill=(127, 127, 127))}
    )
    larger = LoadedModel(description, loaded.parameters, loaded.tokenizer, loaded.source)
    export(larger, tmp_path / "exported")
    image = write_image(tmp_path / "image.png")
    ours = Answerer(larger, DecodingConfig(max_new_tokens=4))
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "exported").eval()
    inputs = their_inputs(transformers.AutoProcessor.from_pretrained(tmp_path / "exported"), QUESTIONS[0], image)
    assert_logits_equal(ours, [ours.prompt(asked(QUESTIONS[0], image))], theirs, [inputs])


def test_dinov2_reads_images_of_another_size_than_its_table_through_a_linear_connector(tmp_path: Path) -> None:
    write_llava(tmp_path / "theirs", "dinov2")
    loaded = load_model(tmp_path / "theirs", chat_template=VICUNA_V1)
    encoder = loaded.config.encoder.model_copy(update={"image_size": (12, 24), "position_grid": (4, 4)})
    model = loaded.config.model_copy(update={"encoder": encoder, "connector": LinearConfig()})
    transform = ImageTransformConfig(size=(12, 24), fill=loaded.image_transform.fill)
    description = loaded.description.model_copy(update={"model": model, "image_transform": transform})
    connector = {"layers_0": loaded.parameters["connector"]["layers_0"]}
    wide = LoadedModel(description, {**loaded.parameters, "connector": connector}, loaded.tokenizer, loaded.source)
    export(wide, tmp_path / "exported")
    again = load_model(tmp_path / "exported")
    assert again.config.encoder == encoder
    image = write_image(tmp_path / "image.png")
    ours = Answerer(wide, DecodingConfig(max_new_tokens=4))
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "exported").eval()
    inputs = their_inputs(transformers.AutoProcessor.from_pretrained(tmp_path / "exported"), QUESTIONS[0], image)
    prompt = ours.prompt(asked(QUESTIONS[0], image))
    assert_logits_equal(ours, [prompt], theirs, [inputs])
    assert Answerer(again, ours.decoding).answer([prompt]) == ours.answer([prompt])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_alone_is_imported_but_has_nothing_to_say(tmp_path: Path, family: str) -> None:
    write_tower(tmp_path / "theirs", family)
    import_folder(tmp_path / "theirs", tmp_path / "imported")
    with pytest.raises(ValueError, match="holds a vision encoder alone"):
        answerer_of(tmp_path / "imported")
