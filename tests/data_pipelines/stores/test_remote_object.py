"""What fsspec's own methods give, as for stores that have no other reader; their web filesystem stands for all."""

import pytest

from data_pipelines.stores.errors import ChangedObjectError
from data_pipelines.stores.remote_object import FilesystemObject, filesystem_of
from tests.support.range_server import range_server

CONTENTS = bytes(range(256))


@pytest.fixture(scope="module")
def server():
    with range_server() as server:
        yield server


@pytest.fixture
def opened(server):
    server.files, server.versions, server.faults = {"a.tar": CONTENTS}, {}, []
    return FilesystemObject(*filesystem_of(server.address("a.tar")), request_seconds=20.0)


def test_ranges_and_version(opened):
    assert opened.size == 256 and opened.version == 'ETag "1"'
    assert opened.read(10, 20) == CONTENTS[10:20]


def test_another_version_is_found_behind_the_read(server, opened):
    server.versions["a.tar"] = "2"
    with pytest.raises(ChangedObjectError, match=r'it had 256 bytes \(ETag "1"\) and now has 256 \(ETag "2"\)'):
        opened.read(10, 20)


@pytest.mark.parametrize(("fault", "error"), [(404, FileNotFoundError), (503, OSError), ("short", OSError)])
def test_every_failure_is_an_os_error(server, opened, fault, error):
    server.faults = [fault]
    with pytest.raises(error):
        opened.read(10, 20)


def test_a_request_has_a_limit(server):
    server.files, server.versions, server.slow_seconds = {"a.tar": CONTENTS}, {}, 0.7
    slow = FilesystemObject(*filesystem_of(server.address("a.tar")), request_seconds=0.2)
    server.faults = ["slow"]
    with pytest.raises(TimeoutError):
        slow.read(10, 20)
