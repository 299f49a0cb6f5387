import pytest

from data_pipelines import storage
from data_pipelines.record import ByteRange, ImageBytes
from data_pipelines.storage import Storage


class FlakyFile:
    """Fails a number of times, then gives bytes."""

    def __init__(self, failures):
        self.failures = failures

    def size(self):
        return 3

    def read(self, offset, length):
        if self.failures:
            self.failures -= 1
            raise OSError("the network is down")
        return b"abc"[offset : offset + length]


def test_ranges_of_a_local_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    store = Storage()
    assert store.size(str(path)) == 10
    assert store.read_range(ByteRange(str(path), 2, 3)) == b"234"
    assert store.read_range(ByteRange(str(path))) == b"0123456789"
    assert store.read(str(path), 8, 100) == b"89"
    with pytest.raises(OSError, match="changed while it was being read"):
        store.read_range(ByteRange(str(path), 8, 100))


def test_ranges_of_a_remote_file():
    import fsspec

    with fsspec.open("memory://folder/file", "wb") as file:
        file.write(b"0123456789")
    store = Storage()
    assert store.size("memory://folder/file") == 10
    assert store.read("memory://folder/file", 8, 100) == b"89"
    assert store.read("memory://folder/file", 10, 5) == b""
    assert store.read_range(ByteRange("memory://folder/file", 2, 3)) == b"234"


def test_a_failed_read_is_tried_again_with_growing_waits(monkeypatch):
    monkeypatch.setattr(storage, "_open", lambda path: FlakyFile(failures=3))
    waits = []
    assert Storage(attempts=4, first_wait=1.0, sleep=waits.append).read("file", 0, 3) == b"abc"
    assert len(waits) == 3 and waits == sorted(waits) and waits[0] >= 1.0


def test_a_read_that_keeps_failing_is_an_error_that_names_the_place(monkeypatch):
    monkeypatch.setattr(storage, "_open", lambda path: FlakyFile(failures=9))
    with pytest.raises(OSError, match="file at byte 0 after 2 attempts: the network is down"):
        Storage(attempts=2, sleep=lambda seconds: None).read("file", 0, 3)


def test_a_missing_file_is_not_tried_again(tmp_path):
    def never(seconds):
        raise AssertionError("waited for a file that is not there")

    with pytest.raises(FileNotFoundError, match=r"could not read .*none: No such file"):
        Storage(sleep=never).size(str(tmp_path / "none"))


def test_more_files_than_may_stay_open(tmp_path):
    store = Storage(open_files=2)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    for number in [*range(5), *range(5)]:
        assert store.read(str(tmp_path / str(number)), 0, 9) == b"%d" % number


def test_an_image_is_a_range_of_a_file_or_bytes_at_hand_and_its_beginning_can_be_read_alone(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    sources = ByteRange(str(tmp_path / "file"), 2, 6), ByteRange(str(tmp_path / "file"), 2), ImageBytes(b"234567")
    assert [Storage().read_image(source) for source in sources] == [b"234567", b"23456789", b"234567"]
    assert {Storage().read_image(source, 3) for source in sources} == {b"234"}
    assert Storage().read_image(sources[0], 100) == b"234567"
