import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from data_pipelines.lanes import Lane
from data_pipelines.quota import Skip
from data_pipelines.record import ImageBytes, ImagePart, TextPart
from data_pipelines.sources import tfds_mappings
from data_pipelines.sources.choice import SourceConfig
from data_pipelines.sources.source import records
from data_pipelines.sources.tfds import TfdsConfig
from data_pipelines.sources.tfds_mappings import CaptionMapping, ClassMapping, QuestionMapping
from data_pipelines.storage import Storage
from tests.support.tiny_stream import IMAGE_TOKENS, render, stream_config
from tests.support.tiny_tfds import example, png, write_pictures

COUNT = 12
CAPTIONS = {"kind": "captions", "caption": "captions/text"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    write_pictures(folder, [example(number) for number in range(COUNT - 1)] + [example(COUNT - 1, title=" ")])
    return folder


@pytest.fixture
def open_source(prepared):
    def open_with(folder=prepared, mapping=CAPTIONS, **config):
        return TfdsConfig(
            **({"name": "tiny_pictures:1.0.0", "data_dir": str(folder), "mapping": mapping} | config)
        ).open(Storage())

    return open_with


def test_examples_are_read_by_number_and_images_stay_encoded(open_source, prepared):
    source = open_source()
    assert source.count(0) == COUNT and len(source.shards) == 1
    found = list(records(source))
    assert len(found) == COUNT
    for number, record in enumerate(found):
        asked, told = record.turns
        assert asked.parts == (ImagePart(ImageBytes(png(number))),)
        assert told.parts[0].text in [f"caption {number} {other}" for other in range(3)] and told.learn
        assert record.key == f"{prepared}/tiny_pictures/1.0.0/train:{number}"
        assert source.read(source.locate(0, number)) == record
    assert len({record.turns[1].parts[0].text[-1] for record in found}) > 1


def test_questions_and_classes(open_source):
    vqa = {"kind": "vqa", "question": "asked/question", "answer": "asked/answers", "instruction": "In one word."}
    record = next(iter(records(open_source(mapping=vqa))))
    assert record.turns[0].parts[1] == TextPart("what is 0?\nIn one word.")
    assert record.turns[1].parts == (TextPart("two"),)
    classes = {"kind": "classification", "questions": ["What is it?"], "names": {"dog": "a dog"}}
    told = [
        [part.text for turn in record.turns for part in turn.parts[-1:]]
        for record in records(open_source(mapping=classes))
    ]
    assert told[:2] == [["What is it?", "tabby cat"], ["What is it?", "a dog"]]


def test_a_part_of_a_split_is_a_split(open_source):
    source = open_source(split="train[2:4]+test[:1]")
    assert [record.turns[0].parts[0].source.data for record in records(source)] == [png(2), png(3), png(0)]


def test_an_example_without_text_is_skipped_with_its_key(open_source, prepared):
    found = list(records(open_source(mapping={"kind": "captions", "caption": "title"})))
    assert [found_.key for found_ in found if isinstance(found_, Skip)] == [f"{prepared}/tiny_pictures/1.0.0/train:11"]
    assert found[-1].cause == "empty_caption"


def test_damaged_files_are_skipped_record_by_record(open_source, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    file = next((tmp_path / "tiny_pictures" / "1.0.0").glob("*train*"))
    data = bytearray(file.read_bytes())
    data[100:140] = bytes(40)
    file.write_bytes(data)
    causes = {found.cause for found in records(open_source(tmp_path)) if isinstance(found, Skip)}
    assert causes == {"corrupt_record"}
    file.write_bytes(data[:1000])
    assert {found.cause for found in records(open_source(tmp_path))} == {"corrupt_record"}


def test_a_lane_goes_on_where_its_small_state_says(open_source):
    source, config = open_source(), stream_config(row_length=48, lanes=1, skip_quota=1.0)
    lane = Lane(0, config, {"pairs": source}, render, IMAGE_TOKENS)
    for _ in range(5):
        lane.next_row()
    state = json.dumps(lane.state())
    assert "PNG" not in state and len(state) < 1000
    again = Lane(0, config, {"pairs": open_source()}, render, IMAGE_TOKENS, json.loads(state))
    for _ in range(5):
        assert [part.rendered.key for part in again.next_row()] == [part.rendered.key for part in lane.next_row()]


def test_the_fingerprint_says_what_is_read_and_not_where(open_source, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    here = open_source().fingerprint()
    assert here == open_source(tmp_path).fingerprint() == json.loads(json.dumps(here))
    assert here != open_source(split="test").fingerprint() != open_source(split="train[:5]").fingerprint()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": "tiny_pictures:2.0.0"}, FileNotFoundError, "2.0.0/dataset_info.json.*name another version"),
        ({"data_dir": "gs://bucket/tfds"}, FileNotFoundError, "in a local data_dir"),
        ({"split": "validation"}, ValueError, "Unknown split 'validation'"),
        (
            {"mapping": {"kind": "captions", "caption": "caption"}},
            ValueError,
            "no feature caption; the data set has .*captions",
        ),
        ({"mapping": {"kind": "captions", "caption": "captions/words"}}, ValueError, "no feature captions/words"),
        (
            {"mapping": CAPTIONS | {"image": "title"}},
            ValueError,
            "mapping.image: feature title is Text.*not of type Image",
        ),
        ({"mapping": {"kind": "classification", "label": "title"}}, ValueError, "not of type ClassLabel"),
    ],
)
def test_what_the_data_set_does_not_have_is_an_error_before_anything_is_read(open_source, changes, error, message):
    with pytest.raises(error, match=message):
        open_source(**changes)


def test_a_name_without_its_version_is_refused(open_source):
    with pytest.raises(ValidationError, match="name"):
        open_source(name="tiny_pictures")


def test_other_file_formats_are_refused(open_source, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "tiny_pictures" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match='prepare it with file_format="array_record"'):
        open_source(tmp_path)


def test_features_that_would_import_other_code_are_refused(open_source, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    features = tmp_path / "tiny_pictures" / "1.0.0" / "features.json"
    features.write_text(
        features.read_text().replace("tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text")
    )
    with pytest.raises(ValueError, match=r"class antigravity\.Text"):
        open_source(tmp_path)
    assert "antigravity" not in sys.modules


def test_tensorflow_is_not_imported(prepared):
    config = {"name": "tiny_pictures:1.0.0", "data_dir": str(prepared), "mapping": CAPTIONS}
    code = (
        "import sys; from data_pipelines.sources.tfds import TfdsConfig; from data_pipelines.storage import Storage\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"source = TfdsConfig(**{config!r}).open(Storage())\n"
        "print(len(source.read(source.locate(0, 3)).turns), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_the_page_says_what_the_configs_know():
    page = (Path(__file__).parents[3] / "docs" / "data_tfds.md").read_text(encoding="utf-8")
    (block,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    sources = [TypeAdapter(SourceConfig).validate_python(source) for source in block["data"]["sources"].values()]
    assert {source.mapping.kind for source in sources} == {"captions", "vqa", "classification"}
    for config in (TfdsConfig, CaptionMapping, QuestionMapping, ClassMapping):
        for name in config.model_fields:
            assert f"`{name}`" in page, name
    for cause in re.findall(r'Skip\("(\w+)"', inspect.getsource(tfds_mappings)):
        assert f"`{cause}`" in page, cause
