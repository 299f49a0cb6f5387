"""`mllm data build`: every record of every kind of source comes out once, in whole shards that are always the same."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.building.build import SKIPPED, build
from data_pipelines.building.job import WORK, BuildConfig
from data_pipelines.building.manifest import MANIFEST
from data_pipelines.building.processes import in_processes
from data_pipelines.loader import Loader
from data_pipelines.quota import Skip
from data_pipelines.record import Record
from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.sources.preference_json import PreferenceJsonConfig
from data_pipelines.sources.records import RecordsConfig
from data_pipelines.sources.source import records
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from mllm_jax.cli import main
from tests.support.processes import ROOT
from tests.support.seen_records import seen
from tests.support.tiny_stream import PREPARATION, pair, stream_config, tar_bytes, write_pairs


def said(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def write_talks(folder: Path) -> str:
    """Conversations with no image, one and two, and two that are bad."""
    for name in ("a.png", "b.jpg"):
        (folder / name).write_bytes(f"pixels of {name}".encode())
    talks = [
        {"image": "a.png", "conversations": said("<image>\nWhat is côté?", "A side.", "And a <image>?", "No.")},
        {"image": ["a.png", "b.jpg"], "conversations": said("<image> or <image>?", "Both.")},
        {"image": "none.png", "conversations": said("<image>", "Nothing.")},
        {"conversations": said("No image.", "None.")},
        {"conversations": 3},
    ]
    talks[0]["image"] = ["a.png", "a.png"]
    (folder / "talks.json").write_text(json.dumps(talks))
    return str(folder / "talks.json")


def image_text(folder: Path):
    members = [*pair("a", "small"), ("a.json", b'{"width": 3}'), *pair("b", "large"), ("b.json", b'{"width": 9}')]
    members += [*pair("c", " "), ("c.json", b'{"width": 9}')]
    (folder / "a.tar").write_bytes(tar_bytes(members))
    (folder / "b.tar").write_bytes(tar_bytes(pair("d", "cut") + pair("e", "off"))[:2700])
    filters = {"width": {"at_least": 5}} if folder.name == "filtered" else {}
    return WebDatasetConfig(shards=str(folder / "*.tar"), prompts=("Describe.", "What?"), filters=filters)


def conversations(folder: Path):
    return LlavaJsonConfig(files=write_talks(folder), images=str(folder))


def conversations_of_tars(folder: Path):
    path = write_talks(folder)
    (folder / "images.tar").write_bytes(
        tar_bytes([(name, (folder / name).read_bytes()) for name in ("a.png", "b.jpg")])
    )
    return LlavaJsonConfig(files=path, image_shards=str(folder / "images.tar"))


def preferences(folder: Path):
    write_talks(folder)
    scored = {"reference_chosen": -1.25, "reference_rejected": -7.5, "reference_tokens": [5, 6]}
    asked = {"image": "a.png", "prompt": "What?", "chosen": "This."}
    lines = [asked | {"rejected": "That."}, asked | {"rejected": "That."} | scored, asked]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return PreferenceJsonConfig(files=str(folder / "pairs.jsonl"), images=str(folder))


def filtered(folder: Path):
    (folder / "filtered").mkdir()
    return image_text(folder / "filtered")


SOURCES = [image_text, filtered, conversations, conversations_of_tars, preferences]


@pytest.mark.parametrize("source_in", SOURCES)
def test_what_is_built_is_read_back_and_the_rest_is_told(tmp_path, source_in):
    source, out, storage = source_in(tmp_path), tmp_path / "out", Storage()
    built = build(BuildConfig(source=source, output=str(out), samples_per_shard=1))
    found = list(records(source.open(storage)))
    good, bad = ([each for each in found if isinstance(each, kind)] for kind in (Record, Skip))
    again = list(records(RecordsConfig(shards=str(out / "*.tar"), index="require").open(storage)))
    assert [seen(each, storage.read_range) for each in again] == [seen(each, storage.read_range) for each in good]
    assert (built.records, built.shards) == (len(good), len(good)) and good and bad
    skipped = [Skip(**json.loads(line)) for line in (out / SKIPPED).read_text().splitlines()]
    assert skipped == bad and sum(built.skipped.values()) == len(bad)


def test_a_stream_of_what_was_built_stops_and_goes_on(tmp_path):
    out = str(tmp_path / "out")
    build(BuildConfig(source=write_pairs(tmp_path, [9, 14]), output=out, samples_per_shard=5))
    source = RecordsConfig(shards=f"{out}/*.tar")

    def batches(steps, position=None):
        with Loader(stream_config(), {"pairs": source}, PREPARATION, rows=2, position=position) as loader:
            loaded = [next(loader) for _ in range(steps)]
        return [each.report.keys for each in loaded], loaded[-1].position.to_json()

    whole, _ = batches(6)
    begun, position = batches(2)
    assert begun + batches(4, json.loads(json.dumps(position)))[0] == whole


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".index"}


def test_processes_and_indexes_of_the_source_change_no_byte(tmp_path):
    source = write_pairs(tmp_path, [7, 1, 12, 5])
    build(BuildConfig(source=source, output=str(tmp_path / "one"), samples_per_shard=4))
    assert main(["data", "index", str(source.shards)]) == 0
    build(BuildConfig(source=source, output=str(tmp_path / "three"), samples_per_shard=4), processes=3)
    one, three = content(tmp_path / "one"), content(tmp_path / "three")
    assert one == three and len([name for name in one if name.endswith(".tar")]) == 7


def test_the_manifest_lists_every_shard_with_its_checksum(tmp_path):
    source, out = write_pairs(tmp_path, [7]), tmp_path / "out"
    build(BuildConfig(source=source, output=str(out), samples_per_shard=3))
    listed = json.loads((out / MANIFEST).read_text())["shards"]
    assert [(each["name"], each["records"]) for each in listed] == [
        ("00000.tar", 3),
        ("00001.tar", 3),
        ("00002.tar", 1),
    ]
    for each in listed:
        data = (out / each["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (each["bytes"], each["sha256"])
        assert json.loads((out / f"{each['name'][:-4]}_stats.json").read_text())["successes"] == each["records"]
    assert not (out / WORK).exists()


COMMAND = [sys.executable, "-c", "import sys; from mllm_jax.cli import main; sys.exit(main())", "data", "build"]


def start(source: str, out: Path, processes: int) -> subprocess.Popen:
    sizes = ["--samples-per-shard", "1", "--processes", str(processes)]
    return subprocess.Popen([*COMMAND, source, str(out), *sizes], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_build_that_is_killed_goes_on_and_keeps_what_is_whole(tmp_path, processes):
    source, out = str(write_pairs(tmp_path, [30, 30]).shards), tmp_path / "out"
    killed = start(source, out, processes)
    while not list(out.glob("0000*_stats.json")):
        assert killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = {
        path: path.stat().st_ino for path in out.glob("*.tar") if path.with_name(f"{path.stem}_stats.json").exists()
    }
    assert not (out / MANIFEST).exists() and 0 < len(kept) < 60
    # As if it had been killed in the middle of any of its files.
    for name in ("00007.tar", "00001_stats.json", "skipped.jsonl"):
        (out / f".{name}.4711-0123abcd").write_bytes(b"half")
    gone_on = start(source, out, processes)
    assert "60 records in 60 shards" in gone_on.communicate(timeout=300)[0]
    reference = tmp_path / "reference"
    build(BuildConfig(source=WebDatasetConfig(shards=source), output=str(reference), samples_per_shard=1))
    assert content(out) == content(reference) and not list(out.glob(".*"))
    if processes == 1:
        assert {path: path.stat().st_ino for path in kept} == kept
    assert len(list(records(RecordsConfig(shards=str(out / "*.tar"), index="require").open(Storage())))) == 60


def end_like_one_that_is_killed():
    return lambda thing: os.kill(os.getpid(), signal.SIGKILL) if thing == 3 else thing


def refuse():
    def work(thing):
        raise FileNotFoundError(f"no {thing}")

    return work


def test_a_process_that_is_killed_ends_the_others_with_an_error():
    with pytest.raises(OSError, match=r"ended with code -9.*what is whole is kept"):
        list(in_processes(end_like_one_that_is_killed, range(8), 2))


def test_what_fails_in_a_process_is_raised_in_the_one_that_waits():
    with pytest.raises(OSError, match="no 0"):
        list(in_processes(refuse, range(1), 1))
    with pytest.raises(OSError, match=r"no [01]"):
        list(in_processes(refuse, range(8), 2))


def test_a_folder_holds_one_build(tmp_path, capsys):
    source, out = str(write_pairs(tmp_path, [5]).shards), tmp_path / "out"
    command = ["data", "build", source, str(out), "--samples-per-shard"]
    assert main([*command, "2"]) == 0
    assert main([*command, "2"]) == 0
    assert "5 records in 3 shards (all of it was there already)" in capsys.readouterr().out
    assert main([*command, "3"]) == 1
    assert "holds another build: samples_per_shard was 2, is 3" in capsys.readouterr().err
    assert main(["data", "build", source, str(tmp_path)]) == 1
    assert "is not empty and holds no build" in capsys.readouterr().err


def test_two_builds_in_one_folder_at_once_are_refused(tmp_path):
    out = tmp_path / "out"
    config = BuildConfig(source=write_pairs(tmp_path, [5, 5]), output=str(out), samples_per_shard=1)

    def again(*_):
        with pytest.raises(ValueError, match="another process is building"):
            build(config)

    assert build(config, progress=again).records == 10


def test_a_source_without_a_record_says_why(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.jpg", b"p"), ("b.txt", b"t")]))
    source = WebDatasetConfig(shards=str(tmp_path / "a.tar"))
    with pytest.raises(ValueError, match="no record that can be used: missing_caption 1, missing_image 1"):
        build(BuildConfig(source=source, output=str(tmp_path / "out")))


def test_a_source_that_changes_while_it_is_built_is_an_error(tmp_path):
    path = write_talks(tmp_path)

    def change(what, done, total):
        if what == "reading" and done:
            (tmp_path / "b.jpg").unlink()

    config = BuildConfig(source=LlavaJsonConfig(files=path, images=str(tmp_path)), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"talks\.json:1 was a record before and is none now \(missing_image\)"):
        build(config, progress=change)


RUN = """
data:
  sources:
    pairs: {{kind: webdataset, shards: '{folder}/*.tar', captoin: txt}}
    chats: {{kind: llava_json, files: {folder}/talks.json, images: {folder}}}
"""


def test_a_run_file_names_the_source(tmp_path, capsys):
    write_talks(tmp_path)
    run, out = tmp_path / "run.yaml", str(tmp_path / "out")
    run.write_text(RUN.format(folder=tmp_path))
    assert main(["data", "build", str(run), "--source", "chats", out]) == 0
    told = capsys.readouterr().out
    assert f"{out}: 3 records in 1 shards" in told
    assert f"left out 2: missing_image 1, not_a_conversation 1; each with its key in {out}/skipped.jsonl" in told
    assert f"{{kind: records, shards: {out}/*.tar}}" in told
    for arguments, message in (
        ([str(run), out], r"several sources: say which (--source NAME), one of pairs, chats"),
        ([str(run), out, "--source", "chat"], "no source 'chat'. Did you mean 'chats'?"),
        (
            [str(run), out, "--source", "pairs"],
            "run.yaml:4: data.sources.pairs.captoin: unknown key. Did you mean 'caption'",
        ),
        ([str(run), out, "--source", "chats", "--images", out], "--images goes with a file of conversations"),
        ([str(tmp_path / "talks.json"), out, "--source", "chats"], "names a source of a run file"),
        ([str(tmp_path / "talks.json"), out, "--processes", "0"], "at least 1"),
    ):
        assert main(["data", "build", *arguments]) == 1
        assert message in capsys.readouterr().err
