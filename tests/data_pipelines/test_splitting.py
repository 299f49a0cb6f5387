"""Images split into tiles with marks between them, against the processor that transformers has for Idefics3."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from transformers import Idefics3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from data_pipelines.assemble import empty_batch, place_row
from data_pipelines.packing import Segment
from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.rendered import MARK
from data_pipelines.storage import Storage
from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.chat_template import render, render_prompt
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.splitting import SplittingConfig
from data_pipelines.transforms.templates import IDEFICS3, PLAIN, SMOLVLM
from data_pipelines.transforms.tile_marks import marked, tile_tokens
from data_pipelines.transforms.tiles import TiledImages
from data_pipelines.transforms.tiling import TilingConfig, image_layout
from tests.support.hugging_face_folders import write_image
from tests.support.small_tokenizers import CHAT_TOKENS, write_tokenizer

SIZES = st.tuples(st.integers(1, 900), st.integers(1, 900))
SIDE = 12
FEATURES = 4


def tokenizer_of(kind: str, folder, tiling: SplittingConfig) -> Tokenizer:
    return load_tokenizer(write_tokenizer(kind, folder), (*CHAT_TOKENS, *tile_tokens(SMOLVLM, tiling)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return tokenizer_of("bytes", tmp_path_factory.mktemp("tokenizer"), SplittingConfig(longest_side=3))


def their_processor(tiling: SplittingConfig, side: int) -> Idefics3ImageProcessorPil:
    return Idefics3ImageProcessorPil(
        size={"longest_edge": tiling.longest_side * side},
        max_image_size={"longest_edge": side},
        do_rescale=False,
        do_normalize=False,
        return_row_col_info=True,
    )


def their_text(rows: int, columns: int, features: int) -> str:
    processor = SimpleNamespace(
        fake_image_token="<fake_token_around_image>",
        global_image_tag="<global-img>",
        image_token="<image>",
        image_seq_len=features,
    )
    return Idefics3Processor.replace_image_token(processor, {"rows": [[rows]], "cols": [[columns]]}, 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(1, 90), st.integers(1, 90)), longest_side=st.integers(2, 6), half=st.integers(2, 7))
@example(size=(1, 90), longest_side=4, half=6)
@example(size=(90, 1), longest_side=2, half=2)
@example(size=(89, 90), longest_side=3, half=7)
@example(size=(90, 89), longest_side=3, half=7)
@example(size=(64, 64), longest_side=4, half=6)
def test_tiles_are_those_of_transformers_to_the_byte(size, longest_side, half):
    tiling, side = SplittingConfig(longest_side=longest_side), 2 * half
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    theirs = their_processor(tiling, side)(image, return_tensors="np")
    transform = ImageTransformConfig(size=(side, side), resample="lanczos")
    ours = tiling.cut(np.asarray(image), transform)
    layout = image_layout(size, tiling, (side, side), (1, FEATURES))

    np.testing.assert_array_equal(ours, theirs["pixel_values"][0].transpose(0, 2, 3, 1))
    assert layout.slots == len(ours) == theirs["rows"][0][0] * theirs["cols"][0][0] + 1 <= tiling.most_slots


@settings(max_examples=300, deadline=None, derandomize=True)
@given(size=SIZES, longest_side=st.integers(2, 6), side=st.sampled_from([16, 364, 384, 512]))
def test_the_grid_is_that_of_transformers(size, longest_side, side):
    tiling = SplittingConfig(longest_side=longest_side)
    near = get_resize_output_image_size(np.empty((3, *size)), longest_side * side)
    resizes = SimpleNamespace(resize=lambda image, size, resample: (size.height, size.width))
    full = Idefics3ImageProcessorPil.resize_for_vision_encoder(resizes, np.empty((3, *near)), side)

    assert tiling.scaled_sizes(size, side) == (near, full)


def test_published_sizes_take_the_published_number_of_tokens(tokenizer):
    square = image_layout((900, 900), SplittingConfig(), (364, 364), (1, 169))
    assert (square.slots, len(square.index)) == (17, 17 * 169)
    _, marks = marked(SMOLVLM, SplittingConfig(longest_side=3), tokenizer)
    layout = image_layout((900, 600), SplittingConfig(longest_side=3), (384, 384), (1, 81), marks)
    # Three rows of two tiles, each behind two marks; a newline after each row, the last of them two with the next one.
    newlines = 2 + len(tokenizer.encode("\n\n", start=False))
    assert (layout.slots, len(layout.index)) == (7, 7 * 81 + 7 * 2 + newlines)


@pytest.mark.parametrize("kind", ["bytes", "llama3", "bpe", "unigram"])
def test_marks_are_the_tokens_of_transformers_text(tmp_path, kind):
    tiling = SplittingConfig(longest_side=3)
    tokenizer = tokenizer_of(kind, tmp_path, tiling)
    template, marks = marked(IDEFICS3, tiling, tokenizer)
    record = Record("test", (Turn("user", (ImagePart(ByteRange("image")),), learn=False),))
    for size in ((40, 40), (10, 90), (90, 40), (1, 50)):
        layout = image_layout(size, tiling, (SIDE, SIDE), (2, 2), marks)
        height, width = tiling.scaled_sizes(size, SIDE)[1]
        theirs = tokenizer.encode_marked(their_text(height // SIDE, width // SIDE, FEATURES))
        rendered = render(record, template, tokenizer, lambda image, layout=layout: layout)
        start = rendered.image_starts[0]

        assert rendered.tokens[start : start + len(theirs)].tolist() == theirs
        assert len(layout.index) == len(theirs) - 1, "what ends an image is the template's"
        assert layout.index[layout.index != MARK].tolist() == list(range(layout.slots * FEATURES))
        assert (layout.tokens(tokenizer.image_id) == tokenizer.image_id).tolist() == (layout.index != MARK).tolist()


def conversation(folder, sizes, answer="A picture.") -> Record:
    images = [
        ImagePart(ByteRange(str(write_image(folder / f"{number}-{size[0]}-{size[1]}.png", number, size))))
        for number, size in enumerate(sizes)
    ]
    asked = Turn("user", (*images, TextPart("What is it?")), learn=False)
    return Record(str(sizes), (asked, Turn("assistant", (TextPart(answer),), learn=True)))


def test_packed_rows_name_every_feature_and_learn_no_mark(tmp_path, tokenizer):
    tiling = SplittingConfig(longest_side=3)
    template, marks = marked(SMOLVLM, tiling, tokenizer)
    transform = ImageTransformConfig(size=(SIDE, SIDE), resample="lanczos")
    tiled = TiledImages(tiling, transform, (2, 2), Storage(), marks)
    records = [conversation(tmp_path, ((30, 20), (9, 40))), conversation(tmp_path, ((50, 50),))]
    rendered = [render(record, template, tokenizer, tiled.layout) for record in records]
    batch = empty_batch(1, 300, 30, (SIDE, SIDE))
    place_row(batch, 0, tuple(Segment(each, 0, 0, 0) for each in rendered), FEATURES)

    features = batch.image_index[0][batch.image_index[0] >= 0]
    slots = sum(each.slots for each in rendered)
    assert features.tolist() == list(range(slots * FEATURES)), "of all images, tile after tile"
    assert batch.image_mask[0].tolist() == [slot < slots for slot in range(30)]
    assert ((batch.tokens == tokenizer.image_id) == (batch.image_index >= 0)).all()
    for record, each in zip(records, rendered, strict=True):
        learned = each.tokens[each.supervised].tolist()
        assert tokenizer.decode(learned, skip_special_tokens=False).strip() == "A picture.<end_of_utterance>"
        prompt = render_prompt(record, template, tokenizer, tiled.layout)
        assert prompt.tokens.tolist() == each.tokens[: len(prompt.tokens)].tolist()


def test_a_template_without_marks_leaves_the_tiles_beside_one_another(tokenizer):
    assert marked(PLAIN, SplittingConfig(), tokenizer) == (PLAIN, None)
    assert marked(IDEFICS3, AnyResConfig(), tokenizer) == (IDEFICS3, None)
    assert marked(IDEFICS3, None, tokenizer) == (IDEFICS3, None)


def test_a_tokenizer_without_the_marks_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"needs the special tokens <row_1_col_4>, .* between the tiles"):
        marked(SMOLVLM, SplittingConfig(longest_side=4), tokenizer)


def test_a_tiling_says_its_kind_or_is_of_the_first():
    read = TypeAdapter(TilingConfig).validate_python
    assert read({"grids": [[2, 2]]}) == AnyResConfig(grids=((2, 2),))
    assert read({"kind": "splitting", "longest_side": 3}) == SplittingConfig(longest_side=3)
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        read({"kind": "split"})
    with pytest.raises(ValueError, match="square tiles of an even side, 4 of which are at most 4096 pixels"):
        SplittingConfig().check_tile((1026, 1026))
