"""Idefics2 folders in, talked with, and out again: transformers reads what is written as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from data_pipelines.record import Record, Turn
from data_pipelines.transforms.image import decode_image
from data_pipelines.transforms.templates import IDEFICS2, IDEFICS3
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.export import export
from mllm_jax.interop.hugging_face import read_folder
from mllm_jax.interop.model_folder import load_model
from tests.support.hugging_face_folders import SPECIAL_TOKENS, randomise, text_config, tiny_tokenizer, write_image
from tests.support.proofs import Prover

# One image before text, two side by side after it, and text that begins as a tag does.
QUESTIONS = ("<image> What colour is the digit?", "<image><image>", "red <image><image> <b> How many digits are there?")
# Written as the published one is: a turn begins with its role, and nothing stands between the parts of a content.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
SQUARE = {"shortest_edge": 16, "longest_edge": 16}


def write_idefics2(folder: Path, size: dict[str, int] = SQUARE, **images: Any) -> None:
    config = transformers.Idefics2Config(
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 28,
            "image_size": 16,
            "patch_size": 4,
        },
        text_config=text_config(),
        perceiver_config={
            "resampler_n_latents": 3,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 6,
            "num_key_value_heads": 2,
        },
        image_token_id=SPECIAL_TOKENS.index("<image>"),
    )
    randomise(transformers.Idefics2ForConditionalGeneration(config)).save_pretrained(folder)
    processor = transformers.Idefics2Processor(
        transformers.Idefics2ImageProcessorPil(size=size, **images),
        tiny_tokenizer(),
        image_seq_len=3,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)


def content(question: str) -> list[dict[str, str]]:
    """What a user says, as transformers takes it."""
    pieces = question.split("<image>")
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(pieces):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    return parts


def test_transformers_gives_the_same_tokens_pixels_and_answers(tmp_path: Path, proven: Prover) -> None:
    write_idefics2(tmp_path / "theirs")
    source = load_model(tmp_path / "theirs")
    assert source.chat_template == IDEFICS2
    export(source, tmp_path / "exported")
    loaded = load_model(tmp_path / "exported")
    assert loaded.description == source.description
    assert loaded.image_transform is not None
    ours = Answerer(loaded, DecodingConfig(max_new_tokens=6, rows=1))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported", backend="pil")
    assert isinstance(processor, transformers.Idefics2Processor)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "exported").eval()
    encoder = loaded.config.encoder
    for question in QUESTIONS:
        files = [write_image(tmp_path / f"{seed}.png", seed) for seed in range(question.count("<image>"))]
        parts = user_parts(question, [image_part(file) for file in files])
        prompt = ours.prompt(Record("test", (Turn("user", parts, learn=False),)))
        messages = [{"role": "user", "content": content(question)}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [Image.open(file) for file in files]
        inputs = processor(images=images, text=text, return_tensors="pt", add_special_tokens=False)
        assert inputs["input_ids"][0].tolist() == prompt.tokens.tolist()
        pixels = (np.stack(prompt.images) / 255 - np.array(encoder.pixel_mean)) / np.array(encoder.pixel_std)
        np.testing.assert_allclose(inputs["pixel_values"][0], pixels.transpose(0, 3, 1, 2), atol=1e-6)
    with torch.no_grad():
        said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    answer = list(ours.answer([prompt])[0].tokens)
    assert answer and said[len(prompt.tokens) : len(prompt.tokens) + len(answer)] == answer
    proven(tmp_path / "exported", "generate")


def test_a_published_folders_own_processor_gives_the_same_tokens(tmp_path: Path) -> None:
    """But for text that begins as a tag, to which alone it gives no space after an image."""
    write_idefics2(tmp_path)
    ours = Answerer(load_model(tmp_path), DecodingConfig(max_new_tokens=6, rows=1))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    for question in (*QUESTIONS[:2], "red <image><image> How many?"):
        files = [write_image(tmp_path / f"{seed}.png", seed) for seed in range(question.count("<image>"))]
        parts = user_parts(question, [image_part(file) for file in files])
        prompt = ours.prompt(Record("test", (Turn("user", parts, learn=False),)))
        messages = [{"role": "user", "content": content(question)}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(images=[Image.open(file) for file in files], text=text)
        start = [1] if ours.tokenizer.starts_with_bos else []
        assert start + inputs["input_ids"][0] == prompt.tokens.tolist()


@pytest.mark.parametrize(
    ("size", "images", "expected"),
    [
        (SQUARE, {}, (16, 16)),
        ({"height": 16, "width": 16}, {"resample": 3}, (16, 16)),
        (SQUARE, {"do_image_splitting": True}, None),
        ({"shortest_edge": 12, "longest_edge": 20}, {}, None),
    ],
)
def test_processors_that_split_images_or_keep_their_shape_have_no_transform(
    tmp_path: Path, size: dict[str, int], images: dict[str, Any], expected: tuple[int, int] | None
) -> None:
    write_idefics2(tmp_path / "theirs", size, **images)
    transform = read_folder(tmp_path / "theirs").description.image_transform
    assert (transform and transform.size) == expected
    if transform is not None:
        file = write_image(tmp_path / "image.png", size=(30, 17))
        processor = transformers.Idefics2ImageProcessorPil.from_pretrained(tmp_path / "theirs")
        theirs = processor(Image.open(file), return_tensors="np")["pixel_values"][0, 0]
        transform = transform.model_copy(update={"resize_with": "pillow"})
        ours = decode_image(file.read_bytes(), transform).transpose(2, 0, 1) / 127.5 - 1
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_no_processor_of_idefics2_does_is_not_exported(tmp_path: Path) -> None:
    write_idefics2(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert loaded.image_transform is not None
    padded = loaded.image_transform.model_copy(update={"mode": "pad"})
    for change, message in (
        ({"image_transform": padded}, r"Idefics2's image processor only squashes .* image_transform\.mode is 'pad'"),
        ({"chat_template": IDEFICS3}, r"writes <fake_token_around_image>\.\.\.<fake_token_around_image> \(once"),
    ):
        description = loaded.description.model_copy(update=change)
        with pytest.raises(ValueError, match=message):
            export(replace(loaded, description=description), tmp_path / "exported")
