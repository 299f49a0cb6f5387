"""What a connector reads beside an image: whose text it is, how it is tokenised, and that it stays with its image."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_pipelines.loader import Loader
from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.preparation import Preparation
from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.tokenizer import load_tokenizer, tokenizer_from_files
from data_pipelines.transforms.instructions import InstructionEncoder, image_instructions, instructed
from tests.support.small_tokenizers import word_pieces, write_bert
from tests.support.tiny_stream import IMAGE_TOKENS, decode, render, stream_config, write_pairs

PICTURE = ImagePart(ByteRange("picture.png"))
TEXTS = ("How many digits are there?", "  Colours\n\tof the <image>, [unknown] 猫!", "", "colour " * 9, "IS é ☃")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


def turn(role, *parts):
    return Turn(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts), learn=False)


def test_a_bert_tokenizer_is_read_as_transformers_reads_it(bert):
    tokenizer, theirs = load_tokenizer(bert, added_tokens=()), AutoTokenizer.from_pretrained(bert)
    assert (tokenizer.vocabulary_size, tokenizer.special_id("[DEC]")) == (len(word_pieces()) + 1, len(word_pieces()))
    assert tokenizer.pad_id == 0
    encode = InstructionEncoder(tokenizer, length=40)
    again = InstructionEncoder(tokenizer_from_files(tokenizer.files()), length=40)
    for text in TEXTS:
        assert encode(text).tolist() == theirs(text)["input_ids"] == again(text).tolist()
    assert encode("[CLS] a")[1] != encode("")[0]


def test_of_a_long_instruction_the_end_is_kept(bert):
    tokenizer, theirs = load_tokenizer(bert, added_tokens=()), AutoTokenizer.from_pretrained(bert)
    for text in TEXTS:
        for length in (2, 3, 7):
            ids = InstructionEncoder(tokenizer, length)(text).tolist()
            assert ids == theirs(text, truncation=True, max_length=length)["input_ids"]


def test_the_instruction_is_the_text_of_the_users_turn_that_holds_the_image():
    turns = (
        turn("system", "be brief"),
        turn("user", PICTURE, " first ", "part"),
        turn("assistant", "an answer"),
        turn("user", "before", PICTURE, PICTURE, "after"),
        turn("assistant", PICTURE, "another answer"),
        turn("user", PICTURE),
    )
    asked = "before\nafter"
    assert image_instructions(turns) == ["first\npart", asked, asked, asked, ""]


def test_a_prompt_has_the_instructions_of_its_own_images(bert):
    encode = InstructionEncoder(load_tokenizer(bert, added_tokens=()), length=9)
    answered = Record("key", (turn("user", PICTURE, "how many"), turn("assistant", PICTURE)))
    prompt = render(Record("key", answered.turns[:1]))
    (found,) = instructed(prompt, answered, encode).instructions
    assert found.tolist() == encode("how many").tolist()
    assert instructed(prompt, answered, None) is prompt


@pytest.fixture(scope="module")
def stream(bert, tmp_path_factory):
    """What loads batches of captioned images, each asked for its own key."""
    sources = {"pairs": write_pairs(tmp_path_factory.mktemp("shards"), (30, 11))}
    encode = InstructionEncoder(load_tokenizer(bert, added_tokens=()), length=6)

    def asking(record):
        return instructed(render(record), Record(record.key, (turn("user", PICTURE, record.key[-6:]),)), encode)

    def load(batches, position=None, instruction_tokens=6, **options):
        preparation = Preparation(
            asking if instruction_tokens else render, decode, IMAGE_TOKENS, (4, 4), None, instruction_tokens
        )
        with Loader(stream_config(), sources, preparation, 4, position=position, **options) as loader:
            return [next(loader) for _ in range(batches)]

    return load, encode


def test_every_slot_of_the_stream_has_the_instruction_of_its_own_image(stream):
    load, encode = stream
    (loaded,) = load(1)
    keys = iter(loaded.report.keys)
    for row in range(4):
        for slot in range(3):
            wanted = np.full(6, -1)
            if loaded.batch.image_mask[row, slot]:
                ids = encode(next(keys)[-6:])
                wanted[: len(ids)] = ids
            assert loaded.batch.instructions[row, slot].tolist() == wanted.tolist()


def test_a_stream_goes_on_with_its_instructions_where_it_stopped(stream):
    load, _ = stream
    whole = load(4)
    rest = load(2, position=whole[1].position.to_json(), work=LoaderConfig(prefetch=3, threads=1))
    for first, second in zip(whole[2:], rest, strict=True):
        assert all(np.array_equal(one, two) for one, two in zip(first.batch, second.batch, strict=True))


def test_all_else_is_as_without_instructions(stream):
    load, _ = stream
    with_them, without = load(1)[0].batch, load(1, instruction_tokens=0)[0].batch
    assert without.instructions is None
    for name in (name for name in without._fields if name != "instructions"):
        np.testing.assert_array_equal(getattr(with_them, name), getattr(without, name))
