"""Hostile bytes: whatever they are, they are read or left out with a cause and a key, in bounded time and memory.

A few hundred inputs of each kind here, ten thousand in the long tests.
"""

import json
import re
import resource
import signal
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.loader import Loader
from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart, Record
from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.sources.mmc4 import Mmc4Config
from data_pipelines.sources.obelics import ObelicsConfig
from data_pipelines.sources.preference_json import PreferenceJsonConfig
from data_pipelines.sources.records import RecordsConfig
from data_pipelines.sources.source import Source, records
from data_pipelines.sources.tar_index_files import index_path, make_index
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from data_pipelines.transforms.image import ImageTransformConfig, decode_image
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.image_header import upright_size
from tests.support.mutations import mutated, mutated_tar_fields, repaired_png, repaired_tar, small_images, small_tars
from tests.support.tiny_stream import PREPARATION, pair, stream_config, tar_bytes

HANGS_AFTER = 60
"""Seconds: no input of a few kilobytes takes as long on the slowest machine."""
MEMORY = 200 << 20
"""Bytes that the process may grow by while it reads one input."""
TRANSFORM = ImageTransformConfig(size=(8, 8), max_pixels=100_000)
IMAGES = small_images()
TARS = small_tars(IMAGES["PNG"][0])

CAUSE = re.compile(r"[a-z][A-Za-z0-9_]+")


def examples(count):
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def bounded() -> Iterator[None]:
    """Fails when what is inside takes too long or too much memory."""

    def hang(*_: object) -> None:
        raise AssertionError(f"no end after {HANGS_AFTER} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    former = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"{grown} bytes for one input"


def decoded(data: bytes) -> str | None:
    """Decodes an image; returns the cause why it is none."""
    try:
        assert decode_image(data, TRANSFORM).shape == (8, 8, 3)
        return None
    except ImageError as error:
        assert error.cause in ("corrupt", "too_large", "unsupported") and len(str(error)) < 2000
        return error.cause


def read_all(source: Source, storage: Storage, most: int) -> list[Record | Skip]:
    """Reads every record and every image of it, and looks at every skip."""
    found = list(records(source))
    assert len(found) <= most
    for one in found:
        assert one.key.startswith(source.shards[0]) and len(one.key) < 10_000
        if isinstance(one, Skip):
            assert CAUSE.fullmatch(one.cause) and one.detail and len(one.detail) < 10_000
            continue
        for turn in one.turns:
            for part in turn.parts:
                if isinstance(part, ImagePart):
                    decoded(storage.read_image(part.source))
                else:
                    part.text.encode()
    return found


def any_tar(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, bounded():
        path, storage = Path(folder) / "a.tar", Storage()
        path.write_bytes(data)
        for config in (
            WebDatasetConfig(shards=str(path)),
            WebDatasetConfig(shards=str(path), caption=("json:caption", "txt"), filters={"width": {"at_least": 10}}),
            RecordsConfig(shards=str(path)),
        ):
            source = config.open(storage)
            found = read_all(source, storage, len(data) // 512 + 1)
            walked = list(source.walk(0))
            assert len(found) == len(walked)
            for entry in walked:
                assert source.locate(0, entry.place) == entry
            make_index(str(path), None, storage)
            assert read_all(config.open(storage), storage, len(found)) == found
            Path(index_path(str(path), None)).unlink()


def any_json(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, bounded():
        path, storage = Path(folder) / name, Storage()
        path.write_bytes(data)
        (Path(folder) / "images").mkdir()
        (Path(folder) / "images" / "a.png").write_bytes(IMAGES["PNG"][0])
        places = {"files": str(path), "images": f"{folder}/images"}
        for config in (
            LlavaJsonConfig(**places),
            PreferenceJsonConfig(**places),
            Mmc4Config(**places, similarity={"at_least": 0.2}, missing_images="leave_out"),
            ObelicsConfig(**places, image_names="names"),
        ):
            read_all(config.open(storage), storage, len(data) + 1)


def any_image(data: bytes) -> None:
    with bounded():
        decoded(data)
        try:
            height, width = upright_size(data[:300], lambda: data)
            assert height > 0 and width > 0
        except ImageError as error:
            assert error.cause in ("corrupt", "too_large", "unsupported")


TAR_BYTES = mutated(TARS, repaired_tar) | mutated_tar_fields(TARS)
IMAGE_BYTES = st.one_of([mutated(seeds, repaired_png) for seeds in IMAGES.values()])

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
RECORD = {"id": "1", "image": "a.png", "conversations": TALK}
PAIR = {"prompt": "What?", "chosen": "That.", "rejected": "This.", "image": "a.png"}
MMC4 = {
    "text_list": ["One.", "Two."],
    "image_info": [{"image_name": "a.png", "matched_text_index": 1, "matched_sim": 0.3}],
    "similarity_matrix": [[0.1, 0.3]],
}
INLINE = {**MMC4, "image_info": [{"image_base64": "iVBORw0KGgo=", "matched_text_index": 0}]}
OBELICS = {"images": ["http://a/b.png", None], "texts": [None, "One."], "names": ["a.png", None]}
BASES = [RECORD, PAIR, MMC4, INLINE, OBELICS]
LINES = [json.dumps(value).encode() for value in BASES]
JSONS = [b"[" + b",\n ".join(LINES) + b"]", b"\xef\xbb\xbf" + b"\n".join(LINES), b"\r\n\r\n".join(LINES)]
NAMES = st.sampled_from(["a.png", "../a.png", "/etc/passwd", "a\0b", "\ud800.png", "x" * 300, "a/" * 3000, "", "."])
INNER = ["from", "value", "image", "image_name", "image_base64", "matched_text_index"]
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), NAMES, st.just(TALK)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(INNER),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(sorted({key for base in BASES for key in base} | {"reference", "question", "images"}))
ODD_RECORDS = st.lists(
    st.builds(
        lambda base, changes: json.dumps(base | changes).encode(),
        st.sampled_from(BASES),
        st.dictionaries(KEYS, VALUES, max_size=3),
    ),
    max_size=3,
).map(lambda lines: b"[" + b",".join(lines) + b"]")
JSON_BYTES = st.tuples(mutated(JSONS) | ODD_RECORDS, st.sampled_from(["a.json", "a.jsonl"]))


@examples(150)
@given(data=TAR_BYTES)
def test_any_tar_is_read_or_left_out(data):
    any_tar(data)


@examples(150)
@given(given=JSON_BYTES)
def test_any_json_is_read_or_left_out(given):
    any_json(*given)


@examples(300)
@given(data=IMAGE_BYTES)
def test_any_image_is_decoded_or_left_out(data):
    any_image(data)


@pytest.mark.soak
@examples(10_000)
@given(data=TAR_BYTES)
def test_ten_thousand_tars(data):
    any_tar(data)


@pytest.mark.soak
@examples(10_000)
@given(given=JSON_BYTES)
def test_ten_thousand_jsons(given):
    any_json(*given)


@pytest.mark.soak
@examples(10_000)
@given(data=IMAGE_BYTES)
def test_ten_thousand_images(data):
    any_image(data)


def chunk(name: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", zlib.crc32(name + contents))


def inflating(kind: bytes) -> bytes:
    """A PNG with metadata that would take 300 MB."""
    squeezed = zlib.compress(bytes(300 << 20), 1)
    png = IMAGES["PNG"][0]
    return png[:33] + chunk(kind, b"name\0\0" + squeezed) + png[33:]


def claiming(format: str) -> bytes:
    """A file of a few bytes that says it is as large as its format allows."""
    data = bytearray(IMAGES[format][1 if format == "WEBP" else 0])
    if format == "WEBP":
        data[12:16], data[21:25] = b"VP8L", struct.pack("<I", 16383 - 1 | (16383 - 1) << 14)
    elif format == "GIF":
        frame = data.index(b"\x2c", 13 + 3 * 256)
        data[6:10] = data[frame + 5 : frame + 9] = struct.pack("<HH", 65535, 65535)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", 1 << 20, 1 << 20)
    elif format == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    else:
        data[16:24] = struct.pack(">II", 1 << 30, 1 << 30)
    return repaired_png(bytes(data))


@pytest.mark.parametrize("format", list(IMAGES))
def test_an_image_that_says_it_is_huge_is_refused_and_takes_no_memory(format):
    with bounded():
        with pytest.raises(ImageError) as error:
            decode_image(claiming(format), ImageTransformConfig())
        assert error.value.cause == "too_large"


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_metadata_that_inflates_takes_no_memory(kind):
    data = inflating(kind)
    with bounded():
        decoded(data)


def stream_of(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, bounded():
        good = [member for number in range(9) for member in pair(f"{number}", "text")]
        (Path(folder) / "good.tar").write_bytes(tar_bytes(good))
        (Path(folder) / "odd.tar").write_bytes(data)
        source = {"pairs": WebDatasetConfig(shards=f"{folder}/*.tar")}
        with Loader(stream_config(skip_quota=1.0, unfit_quota=1.0), source, PREPARATION, 4) as loader:
            for _ in range(3):
                loaded = next(loader)
        assert loaded.report.tally.seen >= sum(loaded.report.tally.skipped.values())


@examples(20)
@given(data=TAR_BYTES)
def test_a_stream_goes_on_beside_any_tar(data):
    stream_of(data)


@pytest.mark.soak
@examples(1000)
@given(data=TAR_BYTES)
def test_a_stream_goes_on_beside_a_thousand_tars(data):
    stream_of(data)
