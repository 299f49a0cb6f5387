"""Decoding against Pillow, and the transform against the image processor that transformers makes of our config."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError
from transformers import AutoImageProcessor

from data_pipelines.transforms.image import ImageTransformConfig, decode_image, mean_colour, processor_config
from data_pipelines.transforms.image_error import ImageError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MODES = ("squash", "pad", "crop")
SIZES = [(1, 1), (3, 2), (37, 91), (64, 64), (200, 31), (97, 100)]


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth random colours (JPEG compresses noise badly) in a mode."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, 5, 4), dtype=np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image if mode == "RGBA" else image.convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def through_transformers(data: bytes, config: ImageTransformConfig, folder: Path) -> np.ndarray:
    """f32[3, H, W]: what the exported image processor makes of the file."""
    contents = json.dumps(processor_config(config, MEAN, STD))
    (folder / "preprocessor_config.json").write_text(contents)
    processor = AutoImageProcessor.from_pretrained(folder)
    return np.asarray(processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0])


def normalised(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", [(32, 32), (30, 45)])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_exported_processor(tmp_path, mode, target, size):
    config = ImageTransformConfig(size=target, mode=mode, fill=mean_colour(MEAN))
    data = encoded(picture(*size), "JPEG", quality=85)
    ours = decode_image(data, config)
    assert ours.shape == (*target, 3) and ours.dtype == np.uint8
    theirs = through_transformers(data, config, tmp_path)
    np.testing.assert_allclose(normalised(ours), theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGB", "PNG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("1", "PNG"),
        ("CMYK", "JPEG"),
        ("I;16", "PNG"),
    ],
)
def test_every_mode_becomes_rgb_as_in_transformers(tmp_path, mode, format):
    config = ImageTransformConfig(size=(24, 24))
    data = encoded(picture(41, 29, mode), format)
    theirs = through_transformers(data, config, tmp_path)
    np.testing.assert_allclose(normalised(decode_image(data, config)), theirs, atol=1e-6)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_every_interpolation_is_exported(tmp_path, resample):
    config = ImageTransformConfig(size=(24, 24), resample=resample)
    data = encoded(picture(41, 29))
    theirs = through_transformers(data, config, tmp_path)
    np.testing.assert_allclose(normalised(decode_image(data, config)), theirs, atol=1e-6)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (decode_image(encoded(clear), ImageTransformConfig(size=(4, 4))) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    data = encoded(palette, transparency=0)
    assert (decode_image(data, ImageTransformConfig(size=(4, 4))) == 255).all()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(33, 17), (64, 48)])
def test_jpeg_pixels_are_pillows(size, subsampling, progressive):
    data = encoded(picture(*size), "JPEG", quality=60, subsampling=subsampling, progressive=progressive)
    ours = decode_image(data, ImageTransformConfig(size=size[::-1], resample="nearest"))
    np.testing.assert_array_equal(ours, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(40, 24), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    ours = decode_image(data, ImageTransformConfig(size=upright.size[::-1], resample="nearest"))
    np.testing.assert_array_equal(ours, np.asarray(upright))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_an_image_cut_short_is_corrupt(format):
    data = encoded(picture(64, 64), format)
    with pytest.raises(ImageError) as error:
        decode_image(data[: len(data) // 2], ImageTransformConfig())
    assert error.value.cause == "corrupt"


@pytest.mark.parametrize(
    "data",
    [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!DOCTYPE html><html></html>", b"\x00" * 100],
)
def test_what_is_no_image_is_unsupported(data):
    with pytest.raises(ImageError) as error:
        decode_image(data, ImageTransformConfig())
    assert error.value.cause == "unsupported"


def test_formats_outside_the_list_are_not_opened():
    with pytest.raises(ImageError) as error:
        decode_image(encoded(picture(8, 8), "TIFF"), ImageTransformConfig())
    assert error.value.cause == "unsupported"


def png_that_says(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises a huge image."""

    def chunk(name: bytes, contents: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + contents))
        return struct.pack(">I", len(contents)) + name + contents + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(9_000, 9_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_by_its_header(width, height):
    with pytest.raises(ImageError) as error:
        decode_image(png_that_says(width, height), ImageTransformConfig())
    assert error.value.cause == "too_large"


def test_a_jpeg_of_endless_scans_is_refused():
    data = encoded(picture(64, 48), "JPEG", progressive=True)
    assert decode_image(data, ImageTransformConfig(size=(4, 4))).shape == (4, 4, 3)
    last = data.rindex(b"\xff\xda")
    scan = data[last : last + 2 + int.from_bytes(data[last + 2 : last + 4], "big")]
    with pytest.raises(ImageError, match="110 scans") as error:
        decode_image(data[:-2] + scan * 100 + data[-2:], ImageTransformConfig(size=(4, 4)))
    assert error.value.cause == "too_large"


@pytest.mark.parametrize(("mode", "cause"), [("squash", None), ("pad", "too_large"), ("crop", "too_large")])
def test_a_strip_that_would_grow_huge_is_refused(mode, cause):
    data = encoded(picture(20_000, 2))
    config = ImageTransformConfig(mode=mode)
    if cause is None:
        assert decode_image(data, config).shape == (224, 224, 3)
        return
    with pytest.raises(ImageError) as error:
        decode_image(data, config)
    assert error.value.cause == cause


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_raise_anything_else(mode, data):
    format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]))
    contents = bytearray(encoded(picture(23, 17, "RGB"), format))
    for _ in range(data.draw(st.integers(0, 8))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    contents = contents[: data.draw(st.integers(0, len(contents)))] + data.draw(st.binary(max_size=8))
    config = ImageTransformConfig(size=(8, 8), mode=mode, max_pixels=100_000)
    try:
        assert decode_image(bytes(contents), config).shape == (8, 8, 3)
    except ImageError as error:
        assert error.cause in ("corrupt", "too_large", "unsupported")


def test_a_padding_colour_that_transformers_cannot_express_is_refused():
    config = ImageTransformConfig(mode="pad", fill=(0, 0, 0))
    with pytest.raises(ValueError, match=r"fill is \(0, 0, 0\).*set fill to \(122, 116, 104\)"):
        processor_config(config, MEAN, STD)
    assert processor_config(ImageTransformConfig(mode="squash", fill=(0, 0, 0)), MEAN, STD)["do_pad"] is False


@pytest.mark.parametrize(
    "wrong", [{"size": (0, 224)}, {"mode": "stretch"}, {"max_pixels": 0}, {"fill": (256, 0, 0)}, {"colour": 1}]
)
def test_config_values_out_of_range_are_errors(wrong):
    with pytest.raises(ValidationError):
        ImageTransformConfig(**wrong)
