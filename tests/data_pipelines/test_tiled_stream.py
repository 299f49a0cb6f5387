"""Tiled images through the stream: packed by their headers, cut into slots, resumed exactly."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.loader import Loader
from data_pipelines.packing import fit
from data_pipelines.positions import PositionMismatchError
from data_pipelines.preparation import Preparation
from data_pipelines.quota import QuotaExceededError, Skip
from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.rendered import NEWLINE, ImageLayout
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.chat_template import TEMPLATES, render, render_prompt
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.tiles import TiledImages
from data_pipelines.transforms.tiling import image_layout
from tests.support.small_tokenizers import small_tokenizer
from tests.support.tiny_stream import pair, stream_config, tar_bytes

TILING = AnyResConfig(grids=((1, 2), (2, 1), (2, 2)))
TRANSFORM = ImageTransformConfig(size=(8, 8))
FEATURES = (2, 2)


def picture(number: int) -> Image.Image:
    size = (5 + number * 13 % 40, 5 + number * 29 % 40)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder, counts, damaged=()):
    """One tar a count; pictures are numbered through all of them."""
    number = 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            data = png(picture(number))
            members += pair(
                f"{number:04d}", f"a picture {number}", damaged[number](data) if number in damaged else data
            )
            number += 1
        (folder / f"{shard:03d}.tar").write_bytes(tar_bytes(members))
    return {"pairs": WebDatasetConfig(shards=str(folder / "*.tar"))}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer("bytes", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("shards"), (30, 5, 17))


def preparation(tokenizer, tiling=TILING):
    tiled = TiledImages(tiling, TRANSFORM, FEATURES, Storage())
    return Preparation(
        render=lambda record: render(record, TEMPLATES["plain"], tokenizer, tiled.layout),
        decode=lambda data: pytest.fail("a tiled image was decoded whole"),
        image_tokens=4,
        image_size=(8, 8),
        tiled=tiled,
    )


def load(sources, prepared, batches, position=None, rows=4, **changes):
    values = {"images_per_row": 12, "row_length": 96} | changes
    with Loader(stream_config(**values), sources, prepared, rows, position=position) as loader:
        return [next(loader) for _ in range(batches)]


def test_every_token_of_a_tiled_image_names_its_feature_and_every_slot_holds_its_tile(sources, tokenizer):
    (loaded,) = load(sources, preparation(tokenizer), 1)
    batch = loaded.batch
    keys = iter(loaded.report.keys)
    for row in range(4):
        slot = 0
        for segment in range(1, batch.segment_ids[row].max() + 1):
            image = picture(int(next(keys).rpartition(":")[2]))
            layout = image_layout((image.height, image.width), TILING, (8, 8), FEATURES)
            index = batch.image_index[row][(batch.segment_ids[row] == segment) & (batch.image_index[row] >= 0)]

            assert index[layout.index == NEWLINE].tolist() == [12 * 4] * (layout.index == NEWLINE).sum()
            assert (
                index[layout.index != NEWLINE].tolist() == (layout.index[layout.index != NEWLINE] + slot * 4).tolist()
            )
            tiles = TILING.cut(np.asarray(image), TRANSFORM)
            np.testing.assert_array_equal(batch.images[row, slot : slot + layout.slots], tiles)
            slot += layout.slots
        assert batch.image_mask[row].tolist() == [number < slot for number in range(12)]
    assert loaded.report.images == batch.image_mask.sum() > loaded.report.records
    assert (batch.tokens[batch.image_index >= 0] == tokenizer.image_id).all()
    assert not batch.loss_weights[:, :-1][batch.image_index[:, 1:] >= 0].any()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(stop=st.integers(1, 6), lanes=st.sampled_from([1, 2, 4]))
def test_a_resumed_tiled_stream_gives_identical_batches(sources, tokenizer, stop, lanes):
    prepared = preparation(tokenizer)
    whole = load(sources, prepared, 7, lanes=lanes)
    position = json.loads(json.dumps(whole[stop - 1].position.to_json()))
    resumed = load(sources, prepared, 7 - stop, position, lanes=lanes)

    for one, two in zip(whole[stop:], resumed, strict=True):
        assert all(np.array_equal(first, second) for first, second in zip(one.batch, two.batch, strict=True))
        assert one.position == two.position
    assert len(json.dumps(position)) < 4096 * lanes


def test_another_tiling_does_not_go_on_with_a_stream(sources, tokenizer):
    (loaded,) = load(sources, preparation(tokenizer), 1)

    for other in (AnyResConfig(grids=((2, 2),)), TILING.model_copy(update={"newline": False})):
        with pytest.raises(PositionMismatchError, match=r"tiling\.(grids|newline): was"):
            load(sources, preparation(tokenizer, other), 1, loaded.position.to_json())


def test_damaged_headers_and_images_are_counted_by_cause(tmp_path, tokenizer):
    damaged = {3: lambda data: b"no image at all", 5: lambda data: data[:20], 8: lambda data: data[:-40]}
    sources = write_pictures(tmp_path, (12,), damaged)
    loaded = load(sources, preparation(tokenizer), 6, lanes=1, rows=2, skip_quota=0.5, open_rows=1, shuffle_window=2)
    skipped = [cause for part in loaded for cause, count in part.report.skipped.items() for _ in range(count)]

    assert {"image_unsupported", "image_corrupt"} == set(skipped)
    seen = {int(key.rpartition(":")[2]) for part in loaded for key in part.report.keys}
    assert not seen & damaged.keys() and len(seen) == 9
    with pytest.raises(QuotaExceededError, match="image_"):
        load(sources, preparation(tokenizer), 4, skip_quota=0)


def test_images_of_more_tiles_than_a_row_has_slots_are_dropped_and_counted(sources, tokenizer):
    loaded = load(sources, preparation(tokenizer), 3, images_per_row=3, unfit_quota=0.9)

    assert sum(part.report.skipped.get("too_many_images", 0) for part in loaded) > 0
    for part in loaded:
        for key in part.report.keys:
            image = picture(int(key.rpartition(":")[2]))
            assert image_layout((image.height, image.width), TILING, (8, 8), FEATURES).slots <= 3


def record(folder, numbers, text="What is it?"):
    images = []
    for number in numbers:
        (folder / f"{number}.png").write_bytes(png(picture(number)))
        images.append(ImagePart(ByteRange(str(folder / f"{number}.png"))))
    asked = Turn("user", (*images, TextPart(text)), learn=False)
    return Record("test", (asked, Turn("assistant", (TextPart("A picture of something."),), learn=True)))


def test_each_image_of_a_record_takes_as_many_tokens_as_its_size_asks_for(tmp_path, tokenizer):
    tiled = TiledImages(TILING, TRANSFORM, FEATURES, Storage())
    rendered = render(record(tmp_path, (1, 2, 7)), TEMPLATES["vicuna_v1"], tokenizer, tiled.layout)

    sizes = [(picture(number).height, picture(number).width) for number in (1, 2, 7)]
    assert [layout.size for layout in rendered.layouts] == sizes
    assert rendered.slots == sum(layout.slots for layout in rendered.layouts) > 3
    assert len({len(layout.index) for layout in rendered.layouts}) > 1
    for start, layout in zip(rendered.image_starts, rendered.layouts, strict=True):
        assert (rendered.tokens[start : start + len(layout.index)] == tokenizer.image_id).all()
    assert (rendered.tokens == tokenizer.image_id).sum() == sum(len(layout.index) for layout in rendered.layouts)
    prompt = render_prompt(record(tmp_path, (1, 2, 7)), TEMPLATES["vicuna_v1"], tokenizer, tiled.layout)
    assert prompt.tokens.tolist() == rendered.tokens[: len(prompt.tokens)].tolist()


def test_a_tiled_image_is_never_cut(tmp_path, tokenizer):
    tiled = TiledImages(TILING, TRANSFORM, FEATURES, Storage())
    rendered = render(record(tmp_path, (7,)), TEMPLATES["plain"], tokenizer, tiled.layout)
    end = rendered.image_starts[0] + len(rendered.layouts[0].index)
    kept = fit(rendered, end + 2, images_per_row=9, image_tokens=4, overlong="cut")
    dropped = fit(rendered, end - 1, images_per_row=9, image_tokens=4, overlong="cut")

    assert not isinstance(kept, Skip) and len(kept.tokens) == end + 2 and kept.layouts == rendered.layouts
    assert isinstance(dropped, Skip) and dropped.cause == "too_long"


def test_an_image_without_tiles_is_a_layout_of_one_slot():
    whole = ImageLayout(1, np.arange(3, dtype=np.int32))

    assert whole.placed(first_slot=2, slots=5, features=3).tolist() == [6, 7, 8]
