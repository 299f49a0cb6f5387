"""An Idefics folder in, talked with, and out again: transformers reads what is written as it is."""

from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from data_pipelines.record import Record, Turn
from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import load_model
from tests.support.hugging_face_folders import write_idefics, write_image
from tests.support.proofs import Prover

QUESTION = "<image> What colour is the digit? <image> red blue"


def test_transformers_gives_the_same_answers_about_two_images(tmp_path: Path, proven: Prover) -> None:
    write_idefics(tmp_path / "theirs")
    export(load_model(tmp_path / "theirs", chat_template=VICUNA_V1), tmp_path / "exported")
    loaded = load_model(tmp_path / "exported")
    assert loaded.chat_template == VICUNA_V1
    ours = Answerer(loaded, DecodingConfig(max_new_tokens=6, rows=1))
    images = [write_image(tmp_path / f"{seed}.png", seed) for seed in range(2)]
    parts = user_parts(QUESTION, [image_part(image) for image in images])
    prompt = ours.prompt(Record("test", (Turn("user", parts, learn=False),)))

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    assert isinstance(processor, transformers.IdeficsProcessor)
    theirs = transformers.IdeficsForVisionText2Text.from_pretrained(tmp_path / "exported").eval()
    first, second = prompt.image_starts
    places = np.arange(len(prompt.tokens))
    seen = np.stack([(places >= first) & (places < second), places >= second], axis=-1)
    pixels = processor.image_processor([Image.open(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        said = theirs.generate(
            input_ids=torch.tensor(prompt.tokens)[None].long(),
            attention_mask=torch.ones(1, len(prompt.tokens), dtype=torch.long),
            pixel_values=pixels[None],
            image_attention_mask=torch.tensor(seen)[None].long(),
            max_new_tokens=6,
            do_sample=False,
        )[0].tolist()
    answer = list(ours.answer([prompt])[0].tokens)
    assert answer and said[len(prompt.tokens) : len(prompt.tokens) + len(answer)] == answer
    proven(tmp_path / "exported", "generate")
