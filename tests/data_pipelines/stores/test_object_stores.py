"""gs:// and s3:// as their libraries speak to a server: shards, images in a folder, and objects that change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import pytest

from data_pipelines.loader import Loader
from data_pipelines.sources.image_places import open_images
from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage, StorageConfig
from data_pipelines.stores.errors import ChangedObjectError
from tests.support.google_storage_server import google_storage_server
from tests.support.tiny_stream import PREPARATION, stream_config, write_pairs

BUCKET = "bucket"
CONTENTS = bytes(range(256)) * 100


class Store(NamedTuple):
    scheme: str
    put: Callable[[str, bytes], object]

    def address(self, name: str) -> str:
        return f"{self.scheme}://{BUCKET}/{name}"


@pytest.fixture(scope="module")
def google():
    with pytest.MonkeyPatch.context() as patch, google_storage_server() as server:
        # Looked at when it is imported; it would ask by gRPC what kind of bucket this is.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        filesystem = pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'mllm_jax[gs]'")
        patch.setenv("STORAGE_EMULATOR_HOST", server.address)
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        filesystem.GCSFileSystem.clear_instance_cache()
        yield server
        filesystem.GCSFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def amazon():
    filesystem = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'mllm_jax[s3]'")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[s3,server]'")
    server = moto.ThreadedMotoServer("localhost", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        filesystem.S3FileSystem.clear_instance_cache()
        made = filesystem.S3FileSystem()
        made.mkdir(BUCKET)
        yield made
        filesystem.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["gs", "s3"])
def store(request):
    if request.param == "gs":
        server = request.getfixturevalue("google")
        return Store("gs", lambda name, data: server.put(BUCKET, name, data))
    filesystem = request.getfixturevalue("amazon")
    return Store("s3", lambda name, data: filesystem.pipe_file(f"{BUCKET}/{name}", data))


@pytest.fixture
def storage(tmp_path):
    storage = Storage(StorageConfig(block_bytes=4096, attempts=2, first_wait_seconds=0.01, cache=f"{tmp_path}/cache"))
    yield storage
    storage.close()


def batches(source, storage, count=10, **config):
    stream = stream_config(mixture={"data": 1.0}, **config)
    with Loader(stream, {"data": source}, PREPARATION, 4, storage=storage) as loader:
        return [next(loader) for _ in range(count)]


def assert_same(these, those):
    for one, two in zip(these, those, strict=True):
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(one.batch, two.batch, strict=True))
        assert one.report.tally == two.report.tally


def test_batches_from_a_bucket_are_those_from_local_shards(store, storage, tmp_path):
    write_pairs(tmp_path, (30, 5, 17))
    for path in tmp_path.glob("*.tar"):
        store.put(f"train/{path.name}", path.read_bytes())
    there = WebDatasetConfig(shards=store.address("train/*.tar"))
    assert_same(
        batches(WebDatasetConfig(shards=str(tmp_path / "*.tar")), Storage()),
        batches(there, storage),
    )


def test_images_that_a_bucket_lacks_are_skipped_as_those_that_a_folder_lacks(store, storage, tmp_path):
    (tmp_path / "images").mkdir()
    values = []
    for number in range(20):
        said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"record {number}"}]
        values.append({"image": f"{number}.png", "conversations": said})
        if number % 4:
            (tmp_path / "images" / f"{number}.png").write_bytes(b"pixels %d" % number)
            store.put(f"images/{number}.png", b"pixels %d" % number)
    path = Path(tmp_path / "talks.json")
    path.write_text(json.dumps(values))
    local, remote = (
        batches(LlavaJsonConfig(files=str(path), images=images), reading, count=4, skip_quota=0.5)
        for images, reading in ((str(tmp_path / "images"), Storage()), (store.address("images"), storage))
    )
    assert_same(local, remote)
    assert remote[-1].report.tally.skipped["missing_image"] >= 5


def test_what_only_begins_the_names_of_objects_is_no_image(store, storage):
    store.put("photos/coco/1.png", b"pixels")
    places = open_images(store.address("photos"), (), storage)
    assert places.find("coco", "key").cause == places.find("coco/2.png", "key").cause == "missing_image"
    assert storage.read_image(places.find("coco/1.png", "key")) == b"pixels"


def test_an_object_that_changes_is_an_error(store, storage):
    store.put("changing", CONTENTS)
    assert storage.read(store.address("changing"), 0, 9) == CONTENTS[:9]
    store.put("changing", CONTENTS[::-1])
    with pytest.raises(ChangedObjectError, match=r"changing.*: it changed while the run read it"):
        storage.read(store.address("changing"), len(CONTENTS) - 9, 9)


def test_what_is_not_there_is_not_asked_for_again(store, storage):
    with pytest.raises(FileNotFoundError, match=f"could not read {store.address('none')}"):
        storage.size(store.address("none"))
    assert storage.take_failures() == 0


def test_what_is_forbidden_is_not_asked_for_again(google, storage):
    google.put(BUCKET, "secret", b"secret")
    google.forbidden.add("secret")
    assert storage.size(f"gs://{BUCKET}/secret") == 6  # The listing tells it.
    with pytest.raises(PermissionError, match=r"could not read gs://bucket/secret .*Forbidden"):
        storage.read(f"gs://{BUCKET}/secret", 0, 6)
    assert storage.take_failures() == 0
