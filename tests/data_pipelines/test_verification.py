"""`mllm data verify` and what it is made of: every fault is found, told with its key, and read once."""

import hashlib
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_pipelines.shards import ImageText, write_shards
from data_pipelines.verification import read_reports, verify, verify_shard
from mllm_jax.cli import main


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


SAMPLES = [ImageText(png(number), f"a côté {number}", "png") for number in range(5)]
BAD = ImageText(png(0)[:60], "bad", "png")


@pytest.fixture
def shards(tmp_path):
    """Three shards, of which the second has a bad image."""
    return write_shards([*SAMPLES, BAD, *SAMPLES], tmp_path, samples_per_shard=4)


def test_a_whole_shard_verifies(tmp_path):
    (path,) = write_shards(SAMPLES, tmp_path)
    report = verify_shard(path)
    assert report.whole and report.records == 5 and report.size == path.stat().st_size


def test_a_verification_finds_what_is_wrong(shards):
    first, second, third = verify([str(path) for path in shards])
    assert first.whole and third.whole and (first.records, third.records) == (4, 3)
    assert second.causes() == {"image_corrupt": 1} and second.skips[0].key == f"{shards[1]}:000010001"
    shards[0].write_bytes(shards[0].read_bytes()[:4000])
    cut = verify_shard(shards[0])
    assert not cut.whole and cut.causes() == {"truncated": 1} and cut.stated == 4


def test_a_tar_without_the_statistics_that_others_beside_it_have_is_not_whole(shards, capsys):
    statistics = [path.with_name(f"{path.stem}_stats.json") for path in shards]
    statistics[0].unlink()
    first, _, third = verify([str(path) for path in shards])
    assert first.unfinished and not first.whole and first.records == 4 and not first.skips
    assert third.whole
    assert main(["data", "verify", str(shards[0])]) == 1
    assert "no 00000_stats.json, which others beside it have" in capsys.readouterr().out
    # Tools other than img2dataset write none at all.
    for path in statistics[1:]:
        path.unlink()
    assert verify_shard(shards[0]).whole


def test_shards_that_a_report_has_are_read_again_only_if_their_size_has_changed(shards):
    known = list(verify([str(path) for path in shards]))
    shards[2].write_bytes(bytes(1024))
    read = []

    def decode(data):
        read.append(data)

    again = list(verify([str(path) for path in shards], known=known, decode=decode))
    assert again[:2] == known[:2] and again[2].records == 0 and not read


def test_the_verb_tells_a_line_for_each_shard_with_faults_and_goes_on_where_it_stopped(shards, tmp_path, capsys):
    report, pattern = tmp_path / "report.jsonl", str(tmp_path / "*.tar")
    assert main(["data", "verify", pattern, "--report", str(report)]) == 1
    told = capsys.readouterr().out
    assert f"{shards[1]}: 3 good records; image_corrupt 1; first {shards[1]}:000010001" in told
    assert "3 shards, 1 of them with faults: 10 good records; image_corrupt 1" in told
    lines = report.read_text().splitlines()
    assert [json.loads(line)["records"] for line in lines] == [4, 3, 3]
    # Killed in the middle of a line.
    report.write_text("\n".join([lines[0], lines[1][:40]]))
    assert main(["data", "verify", pattern, "--report", str(report)]) == 1
    assert sorted(each.path for each in read_reports(report)) == sorted(map(str, shards))
    assert main(["data", "verify", str(shards[0]), str(shards[2])]) == 0
    capsys.readouterr()
    assert main(["data", "verify", str(tmp_path / "none-*.tar")]) == 1
    assert "no file matches" in capsys.readouterr().err


def test_conversations_and_their_images_are_verified_too(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "good.png").write_bytes(png(1))
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    records = [{"image": name, "conversations": talk} for name in ("good.png", "none.png")] + [{"conversations": 3}]
    (tmp_path / "chats.json").write_text(json.dumps(records))
    (tmp_path / "00000_stats.json").write_text('{"successes": 3}')
    (report,) = verify([str(tmp_path / "chats.json")])
    assert report.records == 1 and sum(report.causes().values()) == 2 and not report.unfinished


def test_shards_of_records_are_compared_with_their_manifest(tmp_path, capsys):
    write_shards([*SAMPLES, BAD], tmp_path / "pairs")
    built = tmp_path / "built"
    assert main(["data", "build", str(tmp_path / "pairs"), str(built), "--samples-per-shard", "2"]) == 0
    first, second, third = verify([str(built)])
    assert first.whole and second.whole and (first.records, first.stated) == (2, 2)
    assert third.causes() == {"image_corrupt": 1} and third.changed is None
    # A caption of the same length: every record can still be read.
    data = (built / "00000.tar").read_bytes()
    (built / "00000.tar").write_bytes(data.replace("a côté 0".encode(), "a côté 9".encode()))
    changed = verify_shard(built / "00000.tar")
    assert changed.records == 2 and not changed.skips and not changed.whole
    capsys.readouterr()
    assert main(["data", "verify", str(built / "00000.tar")]) == 1
    assert f"its SHA-256 is {hashlib.sha256((built / '00000.tar').read_bytes()).hexdigest()}" in capsys.readouterr().out
    (built / "00001.tar").unlink()
    assert main(["data", "verify", str(built)]) == 1
    assert "1 of the 3 shards" in (told := capsys.readouterr().err) and "00001.tar" in told


def test_a_blend_is_verified_as_far_as_it_is_taken_and_again_when_one_of_its_files_changes(tmp_path, capsys):
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    good, bad = {"conversations": talk}, {"conversations": talk[:1]}
    for name, records in (("one.json", [good, bad, bad]), ("two.json", [good, good, bad])):
        (tmp_path / name).write_text(json.dumps(records))
    datasets = [{"json_path": "one.json", "sampling_strategy": "first:1"}, {"json_path": "two.json"}]
    (tmp_path / "blend.yaml").write_text(json.dumps({"datasets": datasets}))
    command = ["data", "verify", f"{tmp_path}/blend.yaml", "--report", f"{tmp_path}/report.jsonl"]
    assert main(command) == 1
    assert f"first {tmp_path}/two.json:2" in capsys.readouterr().out
    (first,) = read_reports(tmp_path / "report.jsonl")
    assert (first.records, first.causes()) == (3, {"no_answer": 1})
    (tmp_path / "two.json").write_text(json.dumps([good, good]))
    assert main(command) == 0 and read_reports(tmp_path / "report.jsonl")[-1].records == 3
    (tmp_path / "run.yaml").write_text("output: run")
    with pytest.raises(ValueError, match="found output, expected one key, datasets"):
        verify_shard(tmp_path / "run.yaml")


def test_rows_of_parquet_and_the_images_in_them_are_verified(tmp_path):
    texts = [{"user": "What?", "assistant": "That."}]
    rows = [{"images": [{"bytes": data, "path": None}], "texts": texts} for data in (png(1), png(2)[:60])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    report = verify_shard(tmp_path / "0.parquet")
    assert report.records == 1 and report.causes() == {"image_corrupt": 1}
    assert report.skips[0].key == f"{tmp_path}/0.parquet:1"
