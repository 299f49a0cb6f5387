"""A BLIP-2 folder in, talked with, and out again: transformers reads what is written as it is."""

from pathlib import Path

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
from tests.support.hugging_face_folders import write_blip2, write_image
from tests.support.proofs import Prover

QUESTION = "How many digits are there?"


def test_transformers_gives_the_same_tokens_and_answers(tmp_path: Path, proven: Prover) -> None:
    write_blip2(tmp_path / "theirs")
    export(load_model(tmp_path / "theirs", chat_template=VICUNA_V1), tmp_path / "exported")
    loaded = load_model(tmp_path / "exported")
    assert loaded.chat_template == VICUNA_V1
    ours = Answerer(loaded, DecodingConfig(max_new_tokens=6, rows=1))
    image = write_image(tmp_path / "image.png")
    prompt = ours.prompt(Record("test", (Turn("user", user_parts(QUESTION, [image_part(image)]), learn=False),)))

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    assert isinstance(processor, transformers.Blip2Processor)
    for content in ([{"type": "image"}, {"type": "text", "text": QUESTION}], f"<image>\n{QUESTION}"):
        conversation = [{"role": "user", "content": content}]
        # Blip2Processor itself takes no chat template.
        text = processor.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        inputs = processor(images=Image.open(image), text=text, return_tensors="pt", add_special_tokens=False)
        assert inputs["input_ids"][0].tolist() == prompt.tokens.tolist()
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "exported").eval()
    with torch.no_grad():
        said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    answer = list(ours.answer([prompt])[0].tokens)
    assert answer and said[-len(answer) :] == answer
    proven(tmp_path / "exported", "generate")
