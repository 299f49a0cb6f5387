"""Idefics3 and InternVL folders in, talked with, and out again: transformers reads what is written as it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from data_pipelines.record import Record, Turn
from data_pipelines.transforms.templates import CHATML, INTERNVL, SMOLVLM, ChatTemplate
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import load_model
from tests.support.hugging_face_folders import SPECIAL_TOKENS, randomise, text_config, tiny_tokenizer, write_image
from tests.support.proofs import Prover

QUESTION = "How many digits are there?"
TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "image_size": 16,
    "patch_size": 4,
}


def write_idefics3(folder: Path) -> None:
    config = transformers.Idefics3Config(
        vision_config=TOWER, text_config=text_config(), image_token_id=SPECIAL_TOKENS.index("<image>")
    )
    randomise(transformers.Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    images = transformers.Idefics3ImageProcessorPil(
        size={"height": 16, "width": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    transformers.Idefics3Processor(images, tiny_tokenizer(), image_seq_len=4).save_pretrained(folder)


def write_internvl(folder: Path) -> None:
    """As it is published, but for the processor's own file, which takes a video library to make."""
    config = transformers.InternVLConfig(
        vision_config=TOWER,
        text_config=text_config(),
        image_token_id=SPECIAL_TOKENS.index("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )
    randomise(transformers.InternVLForConditionalGeneration(config)).save_pretrained(folder)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    size = {"height": 16, "width": 16}
    transformers.SiglipImageProcessorPil(size=size, image_mean=mean, image_std=std).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<|im_start|><IMG_CONTEXT>{% endfor %}")


WRITERS = {"idefics3": (write_idefics3, SMOLVLM), "internvl": (write_internvl, INTERNVL)}


@pytest.mark.parametrize("family", WRITERS)
def test_transformers_gives_the_same_tokens_and_answers(tmp_path: Path, family: str, proven: Prover) -> None:
    write, template = WRITERS[family]
    write(tmp_path / "theirs")
    given: ChatTemplate | None = None if family == "internvl" else template
    source = load_model(tmp_path / "theirs", chat_template=given)
    assert source.chat_template == template
    export(source, tmp_path / "exported")
    loaded = load_model(tmp_path / "exported")
    assert loaded.description == source.description
    ours = Answerer(loaded, DecodingConfig(max_new_tokens=6, rows=1))
    image = write_image(tmp_path / "image.png")
    prompt = ours.prompt(Record("test", (Turn("user", user_parts(QUESTION, [image_part(image)]), learn=False),)))

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.open(image)], text=text, return_tensors="pt", add_special_tokens=False)
    assert inputs["input_ids"][0].tolist() == prompt.tokens.tolist()
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "exported").eval()
    with torch.no_grad():
        said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    answer = list(ours.answer([prompt])[0].tokens)
    assert answer and said[len(prompt.tokens) : len(prompt.tokens) + len(answer)] == answer
    proven(tmp_path / "exported", "generate")


def test_a_template_without_the_processors_tokens_is_not_exported(tmp_path: Path) -> None:
    write_idefics3(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs", chat_template=CHATML)
    with pytest.raises(
        ValueError, match=r"writes <fake_token_around_image><global-img>\.\.\.<fake_token_around_image>"
    ):
        export(loaded, tmp_path / "exported")


def test_padded_images_are_not_exported_as_idefics3(tmp_path: Path) -> None:
    write_idefics3(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs", chat_template=SMOLVLM)
    assert loaded.image_transform is not None
    padded = loaded.image_transform.model_copy(update={"mode": "pad"})
    description = loaded.description.model_copy(update={"image_transform": padded})
    with pytest.raises(ValueError, match=r"image_transform\.mode is 'pad'; set it to squash"):
        export(replace(loaded, description=description), tmp_path / "exported")
