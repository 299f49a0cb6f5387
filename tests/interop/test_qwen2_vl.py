"""A Qwen2-VL folder in, talked with, and out again: transformers reads what is written as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from data_pipelines.record import Record, Turn
from data_pipelines.transforms.templates import QWEN2_VL
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import LoadedModel, load_model
from tests.support.hugging_face_folders import randomise, tiny_tokenizer, write_image
from tests.support.proofs import Prover

SIZE = (16, 32)
AROUND = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
QUESTIONS = ("<image> What colour is the digit? <image> red blue", "How many <image>", "one two three")


def write_theirs(folder: Path) -> None:
    """A folder as transformers writes it, and beside it the size of the images."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(AROUND)})
    start, end, image = tokenizer.convert_tokens_to_ids(list(AROUND))
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tower = {"depth": 2, "embed_dim": 24, "hidden_size": 48, "num_heads": 3, "mlp_ratio": 2, "patch_size": 4}
    config = transformers.Qwen2VLConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
        video_token_id=0,
    )
    randomise(transformers.Qwen2VLForConditionalGeneration(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil(patch_size=4, min_pixels=512, max_pixels=512).save_pretrained(folder)
    for name, keys in (("config.json", ["vision_config"]), ("preprocessor_config.json", [])):
        written = json.loads((folder / name).read_text())
        inner = written[keys[0]] if keys else written
        inner["image_size"] = list(SIZE)
        (folder / name).write_text(json.dumps(written))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel]:
    folder = tmp_path_factory.mktemp("qwen")
    write_theirs(folder / "theirs")
    export(load_model(folder / "theirs", chat_template=QWEN2_VL), folder / "exported")
    return folder / "exported", load_model(folder / "exported")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [write_image(folder / f"{seed}.png", seed, SIZE) for seed in range(3)]


def test_transformers_gives_the_same_answers(
    exported: tuple[Path, LoadedModel], images: list[Path], proven: Prover
) -> None:
    """About two images, one and none, of which ours are read in one batch."""
    folder, loaded = exported
    assert loaded.chat_template == QWEN2_VL
    ours = Answerer(loaded, DecodingConfig(max_new_tokens=6, rows=3))
    shown = [images[:2], images[2:], []]
    parts = [
        user_parts(text, [image_part(image) for image in chosen]) for text, chosen in zip(QUESTIONS, shown, strict=True)
    ]
    prompts = [ours.prompt(Record("test", (Turn("user", part, learn=False),))) for part in parts]
    theirs = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for prompt, chosen, answer in zip(prompts, shown, ours.answer(prompts), strict=True):
        tokens = torch.tensor(prompt.tokens)[None].long()
        seen = {"mm_token_type_ids": (tokens == theirs.config.image_token_id).int()} if chosen else {}
        if chosen:
            seen |= processor([Image.open(image) for image in chosen], return_tensors="pt")
        with torch.no_grad():
            attention = torch.ones_like(tokens)
            said = theirs.generate(tokens, attention_mask=attention, **seen, max_new_tokens=6, do_sample=False)
        expected = said[0, tokens.shape[1] :].tolist()
        assert answer.tokens and expected[: len(answer.tokens)] == list(answer.tokens)
    proven(folder, "generate")


def test_the_exported_template_writes_the_prompt(exported: tuple[Path, LoadedModel], images: list[Path]) -> None:
    """One token for an image, which transformers' processor repeats."""
    folder, loaded = exported
    content = [{"type": "image"}, {"type": "text", "text": "What colour"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text == f"{system}<|im_start|>user\n{image}What colour<|im_end|>\n<|im_start|>assistant\n"
    expanded = tokenizer(text.replace("<|image_pad|>", 8 * "<|image_pad|>"), add_special_tokens=False)["input_ids"]
    ours = Answerer(loaded, DecodingConfig(max_new_tokens=1))
    parts = user_parts("<image>What colour", [image_part(images[0])])
    assert ours.prompt(Record("test", (Turn("user", parts, learn=False),))).tokens.tolist() == expanded
    stored = json.loads((folder / "config.json").read_text())
    ids = tokenizer.convert_tokens_to_ids(list(AROUND))
    assert [stored[f"{key}_token_id"] for key in ("vision_start", "vision_end", "image")] == ids


@pytest.mark.parametrize(("size", "grid"), [(SIZE, [4, 8]), ((32, 64), [4, 8]), ((20, 20), [6, 6]), ((9, 60), [2, 16])])
def test_their_processor_keeps_the_shape_of_images(
    exported: tuple[Path, LoadedModel], size: tuple[int, int], grid: list[int], tmp_path: Path
) -> None:
    """Pixels are ours for an image of the model's size or a multiple of it; one of another shape has another grid."""
    folder, loaded = exported
    path = write_image(tmp_path / "image.png", 3, size)
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)(Image.open(path), return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [[1, *grid]]
    if grid == [4, 8]:
        ours = Answerer(loaded, DecodingConfig(max_new_tokens=1))
        parts = user_parts("<image>", [image_part(path)])
        pixels = ours.prompt(Record("test", (Turn("user", parts, learn=False),))).images[0]
        encoder = loaded.config.encoder
        normalised = (pixels / 255.0 - np.array(encoder.pixel_mean)) / np.array(encoder.pixel_std)
        cut = normalised.reshape(2, 2, 4, 4, 2, 4, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        repeated = np.repeat(cut[:, :, :, :, :, None], 2, axis=5).reshape(32, -1)
        np.testing.assert_allclose(theirs["pixel_values"], repeated, atol=1e-5)
