"""Preference pairs from JSON to batches: rendered, packed side by side, blanked together."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.loader import Loader
from data_pipelines.packing import fit
from data_pipelines.preparation import Preparation
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, Record, ReferenceScores, TextPart, Turn
from data_pipelines.rendered import RenderError
from data_pipelines.sources.preference_json import PreferenceJsonConfig
from data_pipelines.stream_config import StreamConfig
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.transforms.chat_template import render
from data_pipelines.transforms.image import ImageTransformConfig, decode_image
from data_pipelines.transforms.preferences import render_preference
from data_pipelines.transforms.templates import TEMPLATES
from tests.support.small_tokenizers import CHAT_TOKENS, sentencepiece_model

IMAGE_TOKENS, SIDE, LENGTH = 3, 4, 160


@pytest.fixture(scope="module")
def conversation(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(sentencepiece_model("bpe"))
    tokenizer = load_tokenizer(path, CHAT_TOKENS)
    return lambda record: render(record, TEMPLATES["chatml"], tokenizer, IMAGE_TOKENS)


def pair(better="blue wins", worse="red", reference=None):
    asked = Turn("user", (ImagePart(ByteRange("a.png")), TextPart("which colour?")), learn=False)
    earlier = Turn("assistant", (TextPart("text"),), learn=True)
    answers = (Turn("assistant", (TextPart(text),), learn=True) for text in (better, worse))
    chosen, rejected = answers
    return Record("here:0", (asked, earlier, Turn("user", (TextPart("and?"),), False), chosen), rejected, reference)


def test_both_answers_follow_the_same_prompt_and_nothing_else_is_supervised(conversation):
    rendered = render_preference(pair(), conversation)
    chosen, rejected = rendered.segments
    first = int(chosen.supervised.argmax())
    assert first == int(rejected.supervised.argmax())
    np.testing.assert_array_equal(chosen.tokens[:first], rejected.tokens[:first])
    for segment, text in ((chosen, "blue wins"), (rejected, "red")):
        alone = conversation(Record("", (*pair().turns[:-1], Turn("assistant", (TextPart(text),), learn=True))))
        np.testing.assert_array_equal(segment.tokens, alone.tokens)
        np.testing.assert_array_equal(segment.supervised[first:], alone.supervised[first:])
        # The first answer is part of the prompt here, but an answer to prefix attention still.
        np.testing.assert_array_equal(segment.in_answer, alone.in_answer)
        assert alone.supervised[:first].any() and not segment.supervised[:first].any()
    assert (rendered.length, rendered.slots) == (len(chosen.tokens) + len(rejected.tokens), 1)


def test_pairs_are_never_cut(conversation):
    rendered = render_preference(pair(), conversation)
    assert fit(rendered, rendered.length, 1, IMAGE_TOKENS, "cut") is rendered
    skip = fit(rendered, rendered.length - 1, 1, IMAGE_TOKENS, "cut")
    assert isinstance(skip, Skip) and skip.cause == "too_long"


def test_what_cannot_be_compared_is_told(conversation):
    with pytest.raises(ValueError, match=r"here:0 has one answer, but .* compares two"):
        render_preference(Record("here:0", pair().turns), conversation)
    with pytest.raises(RenderError, match="equal_answers"):
        render_preference(pair("red", " red "), conversation)
    with pytest.raises(ValueError, match=r"here:0 has no reference_chosen.*mllm score"):
        render_preference(pair(), conversation, scored=True)
    with pytest.raises(ValueError, match=r"read \[1, 2\] tokens, but here the answers take"):
        render_preference(pair(reference=ReferenceScores(-1, -2, (1, 2))), conversation, scored=True)


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def stream(conversation, tmp_path_factory):
    """Opens a stream of pairs, every fifth of them with an image that is broken, and all of them scored."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for number in range(20):
        (folder / f"{number}.png").write_bytes(b"no image" if number % 5 == 4 else png(number))
        value = {"question": f"which of {number}?", "chosen": "blue " * (1 + number % 3), "rejected": "red"}
        lines.append(value | ({"image": f"{number}.png"} if number % 3 else {}))
    (folder / "plain.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = PreferenceJsonConfig(files=str(folder / "plain.jsonl"), images=str(folder))
    transform = ImageTransformConfig(size=(SIDE, SIDE), mode="squash")

    def open_with(position=None):
        config = StreamConfig(
            mixture={"pairs": 1}, lanes=2, shuffle_window=3, open_rows=2, row_length=LENGTH, images_per_row=3,
            skip_quota=0.5,
        )  # fmt: skip
        preparation = Preparation(
            lambda record: render_preference(record, conversation),
            lambda data: decode_image(data, transform),
            IMAGE_TOKENS,
            (SIDE, SIDE),
            preferences=True,
        )
        return Loader(config, {"pairs": source}, preparation, rows=4, position=position)

    return open_with


def check_rows(batch):
    """Segments come in pairs that share their slots; returns how many images stand in two segments."""
    shared = 0
    for row in range(len(batch.tokens)):
        segments = [number for number in np.unique(batch.segment_ids[row]) if number]
        for number in segments:
            here = batch.segment_ids[row] == number
            signs = set(batch.preference[row, here].tolist())
            assert signs == {1 if number % 2 else -1}
            if number % 2:
                worse = batch.segment_ids[row] == number + 1
                assert worse.any() and np.flatnonzero(worse)[0] == np.flatnonzero(here)[-1] + 1
                slots = [set(batch.image_index[row, mask].tolist()) for mask in (here, worse)]
                assert slots[0] == slots[1]
                shared += len(slots[0]) > 1
        assert (batch.preference[row, batch.segment_ids[row] == 0] == 0).all()
    assert int(batch.image_mask.sum()) == shared
    return shared


def test_pairs_stand_side_by_side_and_share_their_images(stream):
    keys, shared, lost = 0, 0, 0
    with stream() as loader:
        for _ in range(5):
            loaded = next(loader)
            shared += check_rows(loaded.batch)
            keys += loaded.report.records
            lost += loaded.report.skipped.get("image_unsupported", 0)
            assert loaded.batch.reference is None
            assert int(((loaded.batch.preference == 1) & (loaded.batch.positions == 0)).sum()) == loaded.report.records
    assert shared and lost and keys > 20


def test_the_stream_goes_on_where_it_stood(stream):
    with stream() as loader:
        whole = [next(loader) for _ in range(4)]
    with stream(json.loads(json.dumps(whole[1].position.to_json()))) as loader:
        for expected in whole[2:]:
            found = next(loader)
            for name, array in found.batch._asdict().items():
                np.testing.assert_array_equal(array, getattr(expected.batch, name), err_msg=name)
