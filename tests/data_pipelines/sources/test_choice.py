import json

import pytest
from pydantic import TypeAdapter, ValidationError

from data_pipelines.quota import Skip
from data_pipelines.sources.choice import SourceConfig, source_of_path
from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.sources.preference_json import PreferenceJsonConfig
from data_pipelines.sources.source import records
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from tests.support.tiny_stream import write_pairs


def test_the_kind_says_which_source_it_is():
    choice = TypeAdapter(SourceConfig)
    assert isinstance(choice.validate_python({"kind": "webdataset", "shards": "a.tar"}), WebDatasetConfig)
    assert isinstance(choice.validate_python({"kind": "llava_json", "files": "a.json"}), LlavaJsonConfig)
    assert isinstance(choice.validate_python({"kind": "preference_json", "files": "a.json"}), PreferenceJsonConfig)
    with pytest.raises(ValidationError, match="webdataset"):
        choice.validate_python({"kind": "arrow"})
    with pytest.raises(ValidationError, match="pattern"):
        choice.validate_python({"kind": "webdataset", "shards": "a.tar", "caption": "JSON"})


def test_a_path_alone_names_a_source(tmp_path):
    write_pairs(tmp_path / "tars", (2, 3))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"pixels")
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A."}]
    (tmp_path / "chats.json").write_text(json.dumps([{"image": "a.png", "conversations": said}]))
    for path, count in (("tars", 5), ("tars/pairs-001.tar", 3), ("tars/pairs-{000..001}.tar", 5), ("chats.json", 1)):
        found = list(records(source_of_path(str(tmp_path / path)).open(Storage())))
        assert len(found) == count and not any(isinstance(record, Skip) for record in found)
