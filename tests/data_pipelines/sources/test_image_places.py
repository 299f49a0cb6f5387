"""What a name that a record gives its image leads to, in folders here and far away and in tars."""

import json
from collections import Counter

import fsspec
import numpy as np
import pytest

from data_pipelines.loader import Loader, Share
from data_pipelines.quota import Skip, add_tallies
from data_pipelines.sources.image_places import open_images
from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.storage import Storage, StorageConfig
from tests.support.range_server import range_server
from tests.support.tiny_stream import PREPARATION, stream_config, tar_bytes

IMAGES = {"a.png": b"pixels", "coco/b c%20?#ü.png": b"more pixels", "empty.png": b""}
QUICK = StorageConfig(attempts=3, first_wait_seconds=0.001)


@pytest.fixture(scope="module")
def server():
    with range_server() as server:
        server.files = {f"images/{name}": data for name, data in IMAGES.items()}
        yield server


@pytest.fixture
def storage():
    storage = Storage(QUICK)
    yield storage
    storage.close()


@pytest.fixture(params=["local", "http", "memory", "tars"])
def place(request, server, storage, tmp_path):
    """Finds the same images in a folder, on a web server, in an object store and in a tar."""
    if request.param == "http":
        return open_images(server.address("images/"), (), storage)
    if request.param == "tars":
        (tmp_path / "images.tar").write_bytes(tar_bytes(list(IMAGES.items())))
        return open_images(None, (str(tmp_path / "images.tar"),), storage)
    folder = f"memory://{tmp_path}/images" if request.param == "memory" else str(tmp_path / "images")
    for name, data in IMAGES.items():
        with fsspec.open(f"{folder}/{name}", "wb", auto_mkdir=True) as file:
            file.write(data)
    return open_images(folder, (), storage)


@pytest.mark.parametrize("name", ["a.png", "./a.png", "coco/b c%20?#ü.png"])
def test_an_image_is_found_wherever_it_lies(place, storage, name):
    found = place.find(name, "key")
    assert storage.read_image(found) == IMAGES[name.removeprefix("./")] and found.length


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("none.png", "missing_image"),
        ("coco", "missing_image"),
        ("a.png/b.png", "missing_image"),
        ("", "missing_image"),
        ("\ud800.png", "missing_image"),
        ("x" * 5000, "missing_image"),
        ("empty.png", "empty_image"),
        ("https://example.org/a.png", "image_is_no_file"),
        ("data:image/png;base64,AAAA", "image_is_no_file"),
    ],
)
def test_what_is_not_there_has_the_same_cause_everywhere(place, name, cause):
    skip = place.find(name, "file:7")
    assert isinstance(skip, Skip) and (skip.cause, skip.key) == (cause, "file:7")


@pytest.mark.parametrize("name", ["../a.png", "/etc/hostname", "coco/../../a.png", "a\0.png", "."])
@pytest.mark.parametrize("folder", ["here", "memory://folder"])
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path, storage, folder, name):
    folder = str(tmp_path) if folder == "here" else folder
    assert open_images(folder, (), storage).find(name, "key").cause == "path_escapes"


def test_a_name_opens_no_other_store(tmp_path, storage):
    (tmp_path / "secret.png").write_bytes(b"secret")
    for name in (f"a.png::file:{tmp_path}/secret.png", "a.png::zip"):
        assert open_images("memory://folder", (), storage).find(name, "key").cause == "path_escapes"


def test_a_record_without_a_place_for_images_has_a_skip(storage):
    assert open_images(None, (), storage).find("a.png", "key").cause == "missing_image"
    assert open_images(None, (), storage).find("https://example.org/a.png", "key").cause == "image_is_no_file"


@pytest.mark.parametrize(
    ("faults", "error", "told"),
    [
        ([403], PermissionError, "the server answers 403"),
        ([503] * 3, OSError, "in 3 attempts"),
        ([429] * 3, OSError, "in 3 attempts"),
    ],
)
def test_a_store_that_fails_says_nothing_about_an_image(server, storage, faults, error, told):
    server.faults = list(faults)
    with pytest.raises(error, match=told):
        open_images(server.address("images"), (), storage).find("a.png", "key")
    assert not server.faults


def test_an_image_is_asked_for_until_the_store_answers(server, storage):
    server.faults = [503, 408]
    places = open_images(server.address("images"), (), storage)
    assert places.find("none.png", "key").cause == "missing_image" and storage.take_failures() == 2


@pytest.fixture
def conversations(tmp_path, server):
    """Records every seventh of whose images is nowhere: the file, the local folder and the remote one."""
    values = []
    (tmp_path / "images").mkdir()
    for number in range(60):
        said = [("human", "<image>" + "x" * (number % 11)), ("gpt", f"record {number}")]
        talk = [{"from": role, "value": text} for role, text in said]
        values.append({"image": f"{number}.png", "conversations": talk})
        if number % 7:
            data = f"pixels of {number}".encode()
            (tmp_path / "images" / f"{number}.png").write_bytes(data)
            server.files[f"talks/{number}.png"] = data
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(values))
    return path, tmp_path / "images", server.address("talks")


def batches(path, images, lanes=None, count=8):
    config = stream_config(mixture={"talks": 1.0}, skip_quota=0.5)
    source = LlavaJsonConfig(files=str(path), images=str(images))
    with Loader(config, {"talks": source}, PREPARATION, 4, share=Share(lanes=lanes), storage=Storage(QUICK)) as loader:
        return [next(loader) for _ in range(count)]


def test_missing_images_of_a_store_are_skipped_and_counted_as_those_of_a_folder(conversations, server):
    path, here, there = conversations
    server.faults = [None, 503, None, None, "reset", None] * 3
    for local, remote in zip(batches(path, here), batches(path, there), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(local.batch, remote.batch, strict=True))
        assert local.report.keys == remote.report.keys and local.report.tally == remote.report.tally
        assert local.position.lanes == remote.position.lanes
    assert local.report.tally.skipped["missing_image"] > 3


def test_every_process_counts_the_missing_images_of_its_own_lanes(conversations):
    path, _, there = conversations
    whole = batches(path, there)
    parts = [batches(path, there, lanes=(lane,)) for lane in range(2)]
    for both, *each in zip(whole, *parts, strict=True):
        assert both.report.tally == add_tallies(part.report.tally for part in each)
        assert both.report.skipped == Counter(
            cause for part in each for cause in Counter(part.report.skipped).elements()
        )
