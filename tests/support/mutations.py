"""Hostile files for property tests: valid ones with bytes flipped, cut out, put in, and lengths that lie."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.record import ImageBytes, ImagePart, Record, TextPart, Turn
from data_pipelines.sources.record_json import members_of
from tests.support.tiny_stream import tar_bytes

ANSWER = Turn("assistant", (TextPart("That."),), True)

LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Values that lengths are replaced by."""

Change = Callable[[bytes], bytes]
PLACES = st.integers(0, 1 << 20)


def _flip(place: int, bit: int) -> Change:
    return lambda data: data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def _cut(place: int, length: int) -> Change:
    return lambda data: data[:place] + data[place + length :]


def _insert(place: int, more: bytes) -> Change:
    return lambda data: data[:place] + more + data[place:]


def _repeat(place: int, length: int, times: int) -> Change:
    return lambda data: data[: place + length] + data[place : place + length] * times + data[place + length :]


def _lie(place: int, value: int, width: int, order: str) -> Change:
    return lambda data: (
        data[:place] + (value & (1 << 8 * width) - 1).to_bytes(width, order) + data[place + width :]  # type: ignore[arg-type]
    )


CHANGES = st.one_of(
    st.tuples(st.just(_flip), PLACES, st.integers(0, 7)),
    st.tuples(st.just(_cut), PLACES, st.integers(1, 600)),
    st.tuples(st.just(_cut), PLACES, st.just(1 << 20)),
    st.tuples(st.just(_insert), PLACES, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just(_repeat), PLACES, st.integers(1, 600), st.integers(1, 20)),
    st.tuples(
        st.just(_lie), PLACES, st.sampled_from(LENGTHS), st.sampled_from([1, 2, 4]), st.sampled_from(["big", "little"])
    ),
)
"""A kind of change, where, and what it needs besides."""


@st.composite
def mutated(draw, seeds: list[bytes], repair: Callable[[bytes], bytes] = bytes) -> bytes:
    """One of the seeds after up to six changes; `repair` sets checksums right, so that what lies behind is reached."""
    data = draw(st.sampled_from(seeds))
    for change, place, *rest in draw(st.lists(CHANGES, max_size=6)):
        if data:
            data = change(place % len(data), *rest)(data)
    return repair(data) if draw(st.booleans()) else data


@st.composite
def mutated_tar_fields(draw, seeds: list[bytes]) -> bytes:
    """A tar of which fields of headers were replaced, with the checksums that belong to them."""
    data = bytearray(draw(st.sampled_from(seeds)))
    headers = [info for info in tar_headers(bytes(data))]
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.sampled_from(headers))
        field, width = draw(st.sampled_from([(0, 100), (124, 12), (156, 1), (157, 100), (345, 155)]))
        if field == 124:
            size = draw(st.one_of(st.integers(0, 1 << 40), st.sampled_from(LENGTHS)))
            contents = draw(
                st.sampled_from([b"%011o\0" % min(size, 8**11 - 1), b"\x80" + size.to_bytes(11, "big"), b"\xff" * 12])
            )
        elif field == 156:
            contents = draw(
                st.binary(min_size=1, max_size=1) | st.sampled_from([bytes([k]) for k in b"0123456xgLKSDVA"])
            )
        else:
            names = ["../" * 9 + "etc/passwd", "/etc/passwd", "a.pyd", "a.jpg", "\ud800\n\x1b[2J.txt", ".", "..", ""]
            contents = draw(
                st.sampled_from([name.encode("utf-8", "surrogatepass") for name in names]) | st.binary(max_size=width)
            )
        data[begin + field : begin + field + width] = contents[:width].ljust(width, b"\0")
    return repaired_tar(bytes(data))


def tar_headers(data: bytes) -> list[int]:
    """Where the headers of a valid tar stand."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [info.offset for info in tar]


def repaired_tar(data: bytes) -> bytes:
    """Sets the checksum of every block that looks like a header."""
    repaired = bytearray(data)
    for begin in range(0, len(data) - 511, 512):
        block = data[begin : begin + 512]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            repaired[begin + 148 : begin + 156] = b"%06o\0 " % total
    return bytes(repaired)


def repaired_png(data: bytes) -> bytes:
    """Sets the checksums of the chunks of a PNG as far as they can be followed."""
    repaired, place = bytearray(data), 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(data):
        end = place + 8 + struct.unpack(">I", data[place : place + 4])[0]
        if end + 4 > len(data):
            break
        repaired[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(repaired)


def small_images() -> dict[str, list[bytes]]:
    """Format -> images of a few pixels in several of its kinds."""
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    rgba = Image.fromarray(coarse, "RGBA").resize((20, 13), Image.Resampling.BICUBIC)
    rgb, exif = rgba.convert("RGB"), Image.Exif()
    exif[0x0112] = 6

    def encoded(image: Image.Image, format: str, **options) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return {
        "JPEG": [
            encoded(rgb, "JPEG"),
            encoded(rgb, "JPEG", progressive=True),
            encoded(rgb, "JPEG", exif=exif, subsampling=2),
            encoded(rgb.convert("CMYK"), "JPEG"),
            encoded(rgb.convert("L"), "JPEG"),
        ],
        "PNG": [
            encoded(rgba, "PNG"),
            encoded(rgb.convert("P"), "PNG", transparency=0),
            encoded(rgb, "PNG", exif=exif),
            encoded(rgb.convert("1"), "PNG"),
        ],
        "WEBP": [
            encoded(rgb, "WEBP"),
            encoded(rgba, "WEBP", lossless=True),
            encoded(rgb, "WEBP", exif=exif),
            encoded(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(90)]),
        ],
        "GIF": [encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)])],
        "BMP": [encoded(rgb, "BMP"), encoded(rgb.convert("P"), "BMP")],
    }


def small_tars(image: bytes) -> list[bytes]:
    """Tars of image-text pairs and a record of another kind, in all formats of headers."""
    members = [
        *[("000.png", image), ("000.txt", b"one"), ("000.json", b'{"caption": "one", "width": 20, "height": 13}')],
        *[("folder/" * 20 + "001.png", image), ("folder/" * 20 + "001.txt", "bücher".encode())],
        *[("002.txt", b"two"), ("002.json", b'{"caption": "two", "width": 9}'), ("002.png", image)],
    ]
    whole = Record("", (Turn("user", (ImagePart(ImageBytes(image)), TextPart("What?")), False), ANSWER), ANSWER)
    members += [(f"003.{name}", data) for name, data in members_of(whole, lambda source: source.data)]
    return [tar_bytes(members, format) for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
