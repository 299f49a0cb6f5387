import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.transforms.image import ImageTransformConfig, decode_image
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.jpeg_markers import UNKNOWN, JpegMarkers, jpeg_markers

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def jpeg(image: Image.Image = PICTURE, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (jpeg(), JpegMarkers(metadata=False, one_scan=True)),
        (jpeg(PICTURE.convert("L")), JpegMarkers(metadata=False, one_scan=True)),
        (jpeg(exif=turned()), JpegMarkers(metadata=True, one_scan=True)),
        (jpeg(xmp=b"<x/>"), JpegMarkers(metadata=True, one_scan=True)),
        (jpeg(comment=b"\xff\xe1\xff\xda"), JpegMarkers(metadata=False, one_scan=True)),
        (jpeg(progressive=True), JpegMarkers(metadata=False, one_scan=False)),
        (jpeg()[:100], UNKNOWN),
        (b"\xff\xd8\xff", UNKNOWN),
        (b"\xff\xd8\xff\xff" + jpeg()[3:], UNKNOWN),
        (b"\x89PNG", None),
        (b"", None),
    ],
)
def test_markers_say_what_stands_before_the_pixels(data, expected):
    assert jpeg_markers(data) == expected


def test_a_scan_that_stands_in_a_segment_of_another_kind_hides_no_orientation():
    plain = jpeg(exif=turned())
    hidden = plain[:2] + b"\xff\xee\x00\x06\xff\xda\x00\x02" + plain[2:]
    config = ImageTransformConfig(size=(48, 40), resample="nearest")
    np.testing.assert_array_equal(decode_image(hidden, config), decode_image(plain, config))


def test_scans_behind_the_only_one_that_is_read_cost_nothing():
    data = jpeg()
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError) as error:
        decode_image(data[:-2] + scan * 2000 + data[-2:], ImageTransformConfig())
    assert error.value.cause == "corrupt"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_bytes_have_markers(data):
    damaged = bytearray(data.draw(st.sampled_from([jpeg(), jpeg(exif=turned()), jpeg(progressive=True)])))
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(3, 700))] = data.draw(st.integers(0, 255))
    jpeg_markers(bytes(damaged[: data.draw(st.integers(3, len(damaged)))]))
