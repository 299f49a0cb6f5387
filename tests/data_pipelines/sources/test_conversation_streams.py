"""Each kind of conversations through the loader: every record of an epoch, its pixels, what is bad, and a resume."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from data_pipelines.loader import Loader
from data_pipelines.sources.choice import SourceConfig
from tests.support.tiny_stream import PREPARATION, decode, stream_config

RECORDS = 12
LANE_STATE_LIMIT = 64 << 10


def pixels(number):
    return b"pixels of %d" % number


def llava(number, image):
    asked = f"{'<image>' if image else ''}{number}?"
    said = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"{number}!"}]
    return {"conversations": said} | ({"image": image} if image else {})


def messages(number, image):
    parts = [{"type": "image", "image": image}] if image else []
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": f"{number}?"}]}
    return {"messages": [asked, {"role": "assistant", "content": f"{number}!"}]}


def qwen(number, image):
    asked = f"Picture 1: <img>{image}</img>{number}?" if image else f"{number}?"
    return {"conversations": [{"from": "user", "value": asked}, {"from": "assistant", "value": f"{number}!"}]}


def parquet(number, image):
    images = [{"bytes": pixels(number) if image == f"{number}.png" else b"", "path": None}] if image else []
    return {"images": images, "texts": [{"user": f"{number}?", "assistant": f"{number}!"}]}


KINDS = {"llava_json": llava, "llava_blend": llava, "sharegpt_json": messages, "qwen_vl_json": qwen, "parquet": parquet}
CAUSES = {"parquet": "empty_image"}


@pytest.fixture(params=KINDS)
def source(request, tmp_path):
    """Twelve conversations of a kind, every third of text alone, and one whose image is not there."""
    kind, said = request.param, KINDS[request.param]
    (tmp_path / "images").mkdir()
    for number in range(RECORDS):
        (tmp_path / "images" / f"{number}.png").write_bytes(pixels(number))
    values = [said(number, f"{number}.png" if number % 3 else None) for number in range(RECORDS)]
    values.append(said(RECORDS, "none.png"))
    config = {"kind": kind, "files": str(tmp_path / "chats.jsonl"), "images": str(tmp_path / "images")}
    if kind == "parquet":
        config = {"kind": kind, "files": str(tmp_path / "*.parquet")}
        for file, part in enumerate((values[:5], values[5:])):
            table = pyarrow.Table.from_pylist(part, pyarrow.Table.from_pylist(values).schema)
            pyarrow.parquet.write_table(table, tmp_path / f"{file}.parquet", row_group_size=2)
    else:
        (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, values)))
    if kind == "llava_blend":
        halves = [{"json_path": "chats.jsonl", "sampling_strategy": strategy} for strategy in ("first:50%", "end:6")]
        (tmp_path / "blend.yaml").write_text(json.dumps({"datasets": halves}))
        config["files"] = str(tmp_path / "blend.yaml")
    return TypeAdapter(SourceConfig).validate_python(config)


def load(source, batches, position=None, **changes):
    config = stream_config(mixture={"chats": 1.0}, skip_quota=1.0, **changes)
    with Loader(config, {"chats": source}, PREPARATION, 4, position=position) as loader:
        return [next(loader) for _ in range(batches)]


def test_every_record_comes_with_its_pixels_and_what_is_bad_is_counted(source):
    shown, keys, skipped = set(), set(), {}
    for loaded in load(source, 8):
        batch = loaded.batch
        keys |= set(loaded.report.keys)
        shown |= {image.tobytes() for image in batch.images[batch.image_mask]}
        skipped |= loaded.report.skipped
        # An image of this stream takes the token 1, and a row without one runs the same program.
        assert ((batch.tokens == 1) == (batch.image_index >= 0)).all()
        assert (batch.loss_weights.sum(axis=1) > 0).all()
    assert len(keys) == RECORDS and set(skipped) == {CAUSES.get(source.kind, "missing_image")}
    assert shown == {decode(pixels(number)).tobytes() for number in range(RECORDS) if number % 3}


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_stream_gives_identical_batches_from_a_state_of_places(source, stop):
    whole = load(source, 6)
    text = json.dumps(whole[stop - 1].position.to_json())
    assert "pixels" not in text and len(text) < LANE_STATE_LIMIT
    resumed = load(source, 6 - stop, json.loads(text))
    for before, after in zip(whole[stop:], resumed, strict=True):
        assert before.report.keys == after.report.keys and before.position == after.position
        assert all(np.array_equal(one, two) for one, two in zip(before.batch, after.batch, strict=True))
