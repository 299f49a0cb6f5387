import webdataset

from data_pipelines.shards import ImageText, write_shards

SAMPLES = [ImageText(b"pixels %d" % number, f"a côté {number}", metadata={"width": 4}) for number in range(5)]


def test_shards_are_what_webdataset_reads(tmp_path):
    paths = write_shards(SAMPLES, tmp_path, samples_per_shard=3)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar"]
    found = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"00000000{n}" for n in range(3)] + ["000010000", "000010001"]
    assert [sample["txt"].decode() for sample in found] == [sample.caption for sample in SAMPLES]


def test_the_same_samples_give_the_same_bytes(tmp_path):
    first, second = (write_shards(SAMPLES, tmp_path / name) for name in ("one", "two"))
    assert first[0].read_bytes() == second[0].read_bytes()
