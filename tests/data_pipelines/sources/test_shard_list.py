import pytest

from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.storage import Storage


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return str(folder)


def test_braces_globs_and_lists_name_shards_in_order(tmp_path):
    folder = touch(tmp_path, "a-08.tar", "a-09.tar", "a-10.tar", "b.tar")
    expected = tuple(f"{folder}/a-{number}.tar" for number in ("08", "09", "10"))
    assert expand(folder + "/a-{08..10}.tar") == expected
    assert expand(folder + "/a-*.tar") == expected
    assert expand(folder + "/{a-08,b}.tar") == (f"{folder}/a-08.tar", f"{folder}/b.tar")
    assert expand((folder + "/b.tar", folder + "/a-*.tar")) == (f"{folder}/b.tar", *expected)


def test_remote_shards_are_listed_without_asking_for_each():
    assert expand("gs://bucket/{00..02}.tar") == tuple(f"gs://bucket/0{number}.tar" for number in range(3))


@pytest.mark.parametrize("pattern", ["{00..01}.tar", "*.tar", "none.tar", ()])
def test_a_pattern_that_names_nothing_is_an_error_that_names_it(tmp_path, pattern):
    with pytest.raises(FileNotFoundError, match=r"tar|\(\)"):
        expand(f"{tmp_path}/{pattern}" if pattern else pattern)


def test_a_range_that_counts_down_and_a_shard_named_twice_are_errors(tmp_path):
    folder = touch(tmp_path, "a.tar")
    with pytest.raises(ValueError, match="counts down"):
        expand("{09..00}.tar")
    with pytest.raises(ValueError, match="twice"):
        expand((f"{folder}/a.tar", f"{folder}/*.tar"))


def test_the_identity_follows_names_and_sizes_but_not_the_folder(tmp_path):
    first = expand(touch(tmp_path / "here", "a.tar", "b.tar") + "/*.tar")
    moved = expand(touch(tmp_path / "there", "a.tar", "b.tar") + "/*.tar")
    assert identity(first, Storage()) == identity(moved, Storage())
    (tmp_path / "there" / "b.tar").write_bytes(b"changed")
    assert identity(first, Storage()) != identity(moved, Storage())
    assert identity(first, Storage()) != identity(first[:1], Storage())
