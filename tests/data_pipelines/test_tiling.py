"""Tiles and their layout against the processor and the model that transformers has for LLaVA-NeXT."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import NEWLINE, ImageLayout
from data_pipelines.storage import Storage
from data_pipelines.transforms.anyres import AnyResConfig, best_grid
from data_pipelines.transforms.image import ImageTransformConfig, decode_image
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.tiles import TiledImages
from data_pipelines.transforms.tiling import image_layout

LLAVA_NEXT = AnyResConfig()
GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6, unique=True)
SIZES = st.tuples(st.integers(1, 900), st.integers(1, 900))


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def pinpoints(config: AnyResConfig, side: int) -> list[list[int]]:
    return [[rows * side, columns * side] for rows, columns in config.choices]


def their_layout(size: tuple[int, int], config: AnyResConfig, side: int, patches: int) -> list[int]:
    """What their model gathers, from features that hold their own numbers."""
    rows, columns = best_grid(size, config, (side, side))
    features = torch.arange((1 + rows * columns) * patches**2, dtype=torch.float32)
    vision = SimpleNamespace(image_size=side, patch_size=side // patches)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints(config, side)))
    packed, _ = LlavaNextModel.pack_image_features(
        model,
        [features.reshape(-1, patches**2, 1)],
        image_sizes=[size],
        vision_feature_select_strategy="default",
        image_newline=torch.tensor([float(NEWLINE)]),
    )
    return packed[0][:, 0].int().tolist()


def their_count(size: tuple[int, int], config: AnyResConfig, side: int, patches: int) -> int:
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints(config, side)),
        patch_size=side // patches,
        num_additional_image_tokens=0,
        _get_unpadded_features=lambda *shape: LlavaNextProcessor._get_unpadded_features(None, *shape),
    )
    return LlavaNextProcessor._get_number_of_features(processor, *size, side, side)


def test_a_square_of_672_pixels_takes_2928_tokens():
    layout = image_layout((672, 672), LLAVA_NEXT, (336, 336), (24, 24))

    assert layout.slots == 5
    assert len(layout.index) == 576 + 2304 + 48 == 2928
    assert (layout.index == NEWLINE).sum() == 48
    assert layout.index[:576].tolist() == list(range(576))
    assert layout.index[576:600].tolist() == list(range(576, 600)), "the first row of the first tile"
    assert layout.index[600:624].tolist() == list(range(1152, 1176)), "goes on in the tile beside it"
    assert layout.index[624] == NEWLINE


@settings(max_examples=200, deadline=None, derandomize=True)
@given(size=SIZES, grids=GRIDS, patches=st.integers(1, 5))
@example(size=(672, 672), grids=[(2, 2)], patches=24)
@example(size=(1, 900), grids=[(2, 2)], patches=4)
@example(size=(333, 500), grids=[(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)], patches=24)
def test_layouts_are_those_of_transformers(size, grids, patches):
    config = AnyResConfig(grids=tuple(grids))
    side = 14 * patches
    layout = image_layout(size, config, (side, side), (patches, patches))

    assert layout.index.tolist() == their_layout(size, config, side, patches)
    assert len(layout.index) == their_count(size, config, side, patches)
    assert layout.index.max() < layout.slots * patches**2 <= config.most_slots * patches**2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(1, 90), st.integers(1, 90)), grids=GRIDS)
@example(size=(1, 90), grids=[(1, 2)])
@example(size=(33, 50), grids=[(1, 2), (2, 2)])
def test_tiles_are_those_of_transformers_to_the_byte(size, grids):
    config, side = AnyResConfig(grids=tuple(grids)), 12
    image = picture(size)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pinpoints(config, side),
        do_rescale=False,
        do_normalize=False,
    )
    theirs = processor(image, return_tensors="np")
    ours = config.cut(np.asarray(image), ImageTransformConfig(size=(side, side)))

    assert tuple(theirs["image_sizes"][0]) == size
    np.testing.assert_array_equal(ours, theirs["pixel_values"][0].transpose(0, 2, 3, 1))


def test_the_parts_of_a_layout_can_be_left_out():
    size, tile, features = (30, 40), (12, 12), (3, 3)
    whole = image_layout(size, AnyResConfig(grids=((2, 2),)), tile, features)
    rows, columns = 6 - 2, 6  # 18 of 24 pixels are 4.5 of 6 rows, so that one is cut off above and one below.

    def made(**changes) -> ImageLayout:
        return image_layout(size, AnyResConfig(grids=((2, 2),), **changes), tile, features)

    assert (whole.slots, len(whole.index)) == (5, 9 + rows * (columns + 1))
    assert (made(base=False).slots, len(made(base=False).index)) == (4, rows * (columns + 1))
    assert made(base=False).index.max() == 35 - 3, "the last row of the last tile shows padding"
    assert len(made(newline=False).index) == 9 + rows * columns and NEWLINE not in made(newline=False).index
    assert len(made(unpad=False).index) == 9 + 6 * 7


def test_tiles_need_not_be_square():
    layout = image_layout((20, 90), AnyResConfig(grids=((1, 2),), newline=False), (12, 24), (2, 5))

    assert layout.slots == 3
    assert layout.index[:10].tolist() == list(range(10))
    assert layout.index[10:20].tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 23, 24]
    tiles = AnyResConfig(grids=((1, 2),)).cut(np.asarray(picture((20, 90))), ImageTransformConfig(size=(12, 24)))
    assert tiles.shape == (3, 12, 24, 3)


def test_a_number_of_tiles_stands_for_every_grid_within_it():
    config = AnyResConfig(max_tiles=4)

    assert config.choices == ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
    assert best_grid((10, 10), config, (12, 12)) == (1, 1), "more tiles would show no more of a small image"
    assert best_grid((100, 100), config, (12, 12)) == (2, 2)
    assert best_grid((20, 100), config, (12, 12)) == (1, 4)
    assert config.most_slots == 5


def test_the_layout_in_a_row_counts_from_the_first_slot_and_puts_the_newline_last():
    layout = ImageLayout(slots=2, index=np.array([0, 5, NEWLINE], np.int32))

    assert layout.placed(first_slot=3, slots=7, features=4).tolist() == [12, 17, 28]


def test_an_image_thinner_than_a_feature_is_refused_where_no_base_shows_it():
    with pytest.raises(ImageError, match="too_thin"):
        image_layout((1, 900), AnyResConfig(grids=((2, 2),), base=False), (16, 16), (4, 4))


# Reading sizes from headers


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiled_images(side: int = 12, **transform) -> TiledImages:
    return TiledImages(LLAVA_NEXT, ImageTransformConfig(size=(side, side), **transform), (3, 3), Storage())


def read(data: bytes, folder, images: TiledImages | None = None) -> tuple[ImageLayout, np.ndarray]:
    """Layout and tiles of an image that stands in the midst of a file."""
    (folder / "shard").write_bytes(b"x" * 7 + data + b"y" * 9)
    images = images or tiled_images()
    layout = images.layout(ImagePart(ByteRange(str(folder / "shard"), 7, len(data))))
    return layout, images.decode(data, layout)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(31, 50), (400, 300)])
def test_the_header_says_the_size(tmp_path, format, size):
    layout, tiles = read(encoded(picture(size), format), tmp_path)

    assert layout.size == size
    assert tiles.shape == (layout.slots, 12, 12, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(tmp_path, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture((300, 200)), format, exif=exif)
    layout, tiles = read(data, tmp_path)

    assert layout.size == ((200, 300) if orientation > 4 else (300, 200))
    np.testing.assert_array_equal(tiles[0], decode_image(data, ImageTransformConfig(size=(12, 12))))


def test_only_the_header_of_a_large_image_is_read(tmp_path, monkeypatch):
    data = encoded(picture((700, 700)), "JPEG", quality=95)
    monkeypatch.setattr(Storage, "read_range", lambda *_: pytest.fail("all of it was read"))

    assert len(data) > 1 << 17
    assert read(data, tmp_path)[0].size == (700, 700)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_header_longer_than_usual_is_found_all_the_same(tmp_path, format):
    profile = np.random.default_rng(0).bytes(200_000)
    data = encoded(picture((31, 50)), format, icc_profile=profile)

    assert read(data, tmp_path)[0].size == (31, 50)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"no image", "unsupported"),
        (encoded(picture((31, 50)), "JPEG")[:100], "corrupt"),
        (encoded(picture((31, 50)), "WEBP")[:100], "corrupt"),
        (encoded(picture((31, 50)), "PNG")[:20], "corrupt"),
    ],
)
def test_a_damaged_header_has_a_cause(tmp_path, data, cause):
    with pytest.raises(ImageError) as error:
        read(data, tmp_path)
    assert error.value.cause == cause


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    with pytest.raises(ImageError) as error:
        read(encoded(picture((31, 50)), "PNG"), tmp_path, tiled_images(max_pixels=31 * 50 - 1))
    assert error.value.cause == "too_large"


def test_an_image_that_turns_out_another_size_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture((31, 50)), "PNG", exif=exif)
    chunk_start = data.index(b"eXIf") - 4
    chunk_end = chunk_start + 12 + int.from_bytes(data[chunk_start : chunk_start + 4])
    chunk, rest = data[chunk_start:chunk_end], data[:chunk_start] + data[chunk_end:]
    end = rest.index(b"IEND") - 4
    with pytest.raises(ImageError) as error:
        read(rest[:end] + chunk + rest[end:], tmp_path)
    assert error.value.cause == "turned"
