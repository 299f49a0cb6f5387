"""A PaliGemma folder in, talked with, and out again: transformers reads what is written as it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from data_pipelines.record import Record, TextPart, Turn
from data_pipelines.transforms.templates import CHATML, PALIGEMMA
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import load_model
from tests.support.hugging_face_folders import image_processor, randomise, tiny_tokenizer, vision_config, write_image
from tests.support.proofs import Prover

QUESTION = "How many digits are there?"
TEXTS = {
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
}


def write_paligemma(folder: Path, decoder: str) -> None:
    """As they are published: without a chat template, with room for the tokens that the processor adds."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    images = image_processor("siglip")
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    text = TEXTS[decoder](
        vocab_size=1536,
        hidden_size=36,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = transformers.PaliGemmaConfig(
        vision_config=vision_config("siglip"),
        text_config=text,
        image_token_index=processor.image_token_id,
        projection_dim=36,
        hidden_size=36,
    )
    randomise(transformers.PaliGemmaForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)


def asked(question: str, *images: Path) -> Record:
    return Record("test", (Turn("user", user_parts(question, [image_part(each) for each in images]), learn=False),))


@pytest.mark.parametrize("decoder", TEXTS)
def test_transformers_gives_the_same_tokens_pixels_and_answers(tmp_path: Path, decoder: str, proven: Prover) -> None:
    write_paligemma(tmp_path / "theirs", decoder)
    source = load_model(tmp_path / "theirs")
    assert source.chat_template == PALIGEMMA
    export(source, tmp_path / "exported")
    loaded = load_model(tmp_path / "exported")
    assert loaded.description == source.description
    ours = Answerer(loaded, DecodingConfig(max_new_tokens=6, rows=1))
    image = write_image(tmp_path / "image.png")
    prompt = ours.prompt(asked(QUESTION, image))

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    assert isinstance(processor, transformers.PaliGemmaProcessor)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == f"<image>{QUESTION}"
    inputs = processor(images=[Image.open(image)], text=text, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == prompt.tokens.tolist()
    encoder = loaded.config.encoder
    pixels = (prompt.images[0] / 255 - np.array(encoder.pixel_mean)) / np.array(encoder.pixel_std)
    np.testing.assert_allclose(inputs["pixel_values"][0].numpy(), pixels.transpose(2, 0, 1), atol=1e-6)
    inputs.pop("labels")
    model_class = transformers.PaliGemmaForConditionalGeneration
    # Only eager attention applies Gemma 2's caps.
    theirs = model_class.from_pretrained(tmp_path / "exported", attn_implementation="eager").eval()
    with torch.no_grad():
        said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    answer = list(ours.answer([prompt])[0].tokens)
    assert answer and said[len(prompt.tokens) : len(prompt.tokens) + len(answer)] == answer
    proven(tmp_path / "exported", "generate")


def test_questions_with_answers_are_those_of_the_processor(tmp_path: Path) -> None:
    """Ids and what is learned of a training record; several images, and the place tokens of boxes in an answer."""
    write_paligemma(tmp_path / "theirs", "gemma")
    export(load_model(tmp_path / "theirs"), tmp_path / "exported")
    ours = Answerer(load_model(tmp_path / "exported"), DecodingConfig(max_new_tokens=1))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    image = write_image(tmp_path / "image.png")
    cases = (("detect digit", "<loc0012><loc0500>digit", 1), ("compare", "red, blue", 2))
    for question, answer, count in cases:
        turns = asked(question, *[image] * count).turns
        rendered = ours.rendered(Record("test", (*turns, Turn("assistant", (TextPart(answer),), learn=True))))
        images = [Image.open(image)] * count
        theirs = processor(images=[images], text="<image>" * count + question, suffix=answer)
        assert rendered.tokens.tolist() == theirs["input_ids"][0]
        assert rendered.in_answer.tolist() == [kind == 1 for kind in theirs["token_type_ids"][0]]
        assert rendered.supervised.tolist() == [label != -100 for label in theirs["labels"][0]]


def test_what_the_processor_cannot_write_is_refused(tmp_path: Path) -> None:
    write_paligemma(tmp_path / "theirs", "gemma")
    loaded = load_model(tmp_path / "theirs")
    other = replace(loaded, description=loaded.description.model_copy(update={"chat_template": CHATML}))
    with pytest.raises(ValueError, match="the model's chat template is 'chatml'; train with 'paligemma'"):
        export(other, tmp_path / "chatml")
    export(loaded, tmp_path / "exported")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    said = [{"role": role, "content": "red"} for role in ("user", "assistant", "user")]
    with pytest.raises(Exception, match="This model is asked one question at a time"):
        processor.apply_chat_template(said, add_generation_prompt=True)
