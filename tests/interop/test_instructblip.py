"""An InstructBLIP folder in, talked with, and out again: transformers reads what is written as it is."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.transforms.chat_template import TEMPLATES, written
from data_pipelines.transforms.instructions import InstructionEncoder, image_instructions
from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.export import export
from mllm_jax.interop.hugging_face import import_folder, read_folder
from mllm_jax.interop.instruction_tokenizer import instruction_tokenizer_files, read_instruction_tokenizer
from mllm_jax.interop.model_folder import load_model
from mllm_jax.models.connectors.choice import instruction_tokens
from tests.support.hugging_face_folders import write_image, write_instructblip
from tests.support.proofs import Prover
from tests.support.small_tokenizers import small_tokenizer, write_bert

QUESTION = "How many digits are there?"
PICTURE = ImagePart(ByteRange("picture.png"))


def test_transformers_gives_the_same_tokens_and_answers(tmp_path: Path, proven: Prover) -> None:
    write_instructblip(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "imported")
    export(load_model(tmp_path / "imported", chat_template=VICUNA_V1), tmp_path / "exported")
    loaded = load_model(tmp_path / "exported")
    assert loaded.chat_template == VICUNA_V1
    ours = Answerer(loaded, DecodingConfig(max_new_tokens=6, rows=1))
    image = write_image(tmp_path / "image.png")
    asked = Record("test", (Turn("user", user_parts(QUESTION, [image_part(image)]), learn=False),))
    prompt = ours.prompt(asked)

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    assert isinstance(processor, transformers.InstructBlipProcessor)
    for content in ([{"type": "image"}, {"type": "text", "text": QUESTION}], f"<image>\n{QUESTION}"):
        conversation = [{"role": "user", "content": content}]
        text = processor.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        inputs = processor(images=Image.open(image), text=text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == prompt.tokens.tolist()
        assert inputs["qformer_input_ids"][0].tolist() == prompt.instructions[0].tolist()
    theirs = transformers.InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "exported").eval()
    with torch.no_grad():
        said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    answer = list(ours.answer([prompt])[0].tokens)
    assert answer and said[-len(answer) :] == answer
    proven(tmp_path / "exported", "generate")

    export(loaded, tmp_path / "again")
    for file in ("config.json", "generation_config.json", "qformer_tokenizer/tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "exported" / file).read_bytes()
    assert (loaded.config, loaded.instruction_tokenizer.files()) == (
        load_model(tmp_path / "imported").config,
        load_model(tmp_path / "theirs").instruction_tokenizer.files(),
    )


HIDING = {
    **dict.fromkeys(("plain", "document", "flamingo", "paligemma"), "a user's text begins"),
    **dict.fromkeys(("gemma", "mistral"), "it ends"),
}
"""Templates in whose prompts an instruction cannot be found, and what they do not show."""


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - HIDING.keys()))
def test_the_exported_tokenizer_finds_the_instruction_in_a_prompt(name: str, tmp_path: Path) -> None:
    """Of the turns of a conversation, in that with the image."""
    template, prompts = TEMPLATES[name], small_tokenizer("bpe", tmp_path)
    tokenizer = load_tokenizer(write_bert(tmp_path / "bert"), added_tokens=())
    (tmp_path / "exported").mkdir()
    for file, content in instruction_tokenizer_files(tokenizer, 30, template, prompts).items():
        (tmp_path / "exported" / file).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    encode = InstructionEncoder(tokenizer, 40)
    for parts in ((PICTURE, TextPart("What colour?\nAnswer: red [or] blue")), (TextPart("Of what"), PICTURE)):
        turns = (
            Turn("user", (TextPart("Hello there"),), learn=False),
            Turn("assistant", (TextPart("USER or user?"),), learn=True),
            Turn("user", parts, learn=False),
            Turn("assistant", (TextPart("are there"),), learn=True),
            Turn("user", (TextPart("and digits?"),), learn=False),
        )
        for start, end in ((2, 3), (0, 5)):
            record = Record("key", turns[start:end])
            text = written(record, template, prompts)
            assert theirs(text)["input_ids"] == encode(image_instructions(record.turns)[0]).tolist(), text
    assert theirs(QUESTION)["input_ids"] == encode(QUESTION).tolist()
    again, longest = read_instruction_tokenizer(tmp_path / "exported")
    assert (again.files(), longest) == (tokenizer.files(), 30)


@pytest.mark.parametrize("name", HIDING)
def test_a_prompt_in_which_the_instruction_cannot_be_found_is_refused(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_bert(tmp_path), added_tokens=())
    with pytest.raises(ValueError, match=f"'{name}' .*does not show where {HIDING[name]}"):
        instruction_tokenizer_files(tokenizer, 30, TEMPLATES[name], small_tokenizer("bpe", tmp_path))


def test_the_longest_instruction_is_what_the_tokenizers_files_say(tmp_path: Path) -> None:
    write_instructblip(tmp_path)
    settings = tmp_path / "qformer_tokenizer" / "tokenizer_config.json"
    for said, wanted in ((20, 20), (10**30, 512)):
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": said}))
        assert instruction_tokens(read_folder(tmp_path).description.model.connector) == wanted


def test_a_tokenizer_of_other_instructions_is_refused(tmp_path: Path) -> None:
    write_instructblip(tmp_path)
    place = tmp_path / "qformer_tokenizer"
    larger = transformers.AutoTokenizer.from_pretrained(place)
    larger.add_tokens(["wordless"])
    larger.save_pretrained(place)
    with pytest.raises(ValueError, match=r"the tokenizer of instructions has \d+ tokens, but the connector's"):
        read_folder(tmp_path)
