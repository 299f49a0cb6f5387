"""docs/data_formats.md: the sources that it shows read the records that it shows."""

import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from pydantic import TypeAdapter

from data_pipelines.record import ImagePart, Record
from data_pipelines.sources.choice import SourceConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage

PAGE = Path(__file__).parents[2] / "docs" / "data_formats.md"
KINDS = {
    title: re.findall(r"```(yaml|json)\n(.*?)```", text, re.DOTALL)
    for title, _, text in (part.partition("\n") for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:])
}
LLAVA = next(text for language, text in KINDS["llava_json"] if language == "json")


def _with_bytes(row):
    return row | {"images": [{"bytes": b"pixels", "path": None} for _ in row["images"]]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_source_of_each_kind_reads_its_example(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/images").mkdir(parents=True)
    Path("data/images/a.png").write_bytes(b"pixels")
    (said,) = [text for language, text in KINDS[kind] if language == "yaml"]
    (source,) = yaml.safe_load(said).values()
    assert source["kind"] == kind
    examples = [text for language, text in KINDS[kind] if language == "json"]
    assert all(json.loads(example) for example in examples)
    if kind == "llava_blend":
        for name in ("chats.json", "more.jsonl"):
            Path("data", name).write_text(LLAVA.strip() + "\n" + LLAVA)
    if kind == "parquet":
        rows = [json.loads(example) for example in examples]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([_with_bytes(row) for row in rows]), "data/0.parquet")
    else:
        Path(source["files"]).write_text("".join(examples))
    found = list(records(TypeAdapter(SourceConfig).validate_python(source).open(Storage())))
    assert len(found) == (3 if kind == "llava_blend" else len(examples))
    for record in found:
        assert isinstance(record, Record) and isinstance(record.turns[0].parts[0], ImagePart)
        assert record.turns[-1].role == "assistant" and record.turns[-1].learn
