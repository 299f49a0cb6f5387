"""docs/data_build.md: what is typed there prints what stands there, and makes the files that it lists."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.shards import ImageText, write_shards
from mllm_jax.cli import main

PAGE = (Path(__file__).parents[2] / "docs/data_build.md").read_text(encoding="utf-8")
RUN = "data: {sources: {pairs: {kind: webdataset, shards: pairs/*.tar, filters: {width: {at_least: 12}}}}}\n"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [ImageText(png(n), f"number {n}", "png", {"width": 12 if n < 5 else 8}) for n in range(7)]
    write_shards(pairs, "pairs", samples_per_shard=4)
    Path("images").mkdir()
    chats = []
    for number, name in enumerate(("a.png", "b.png", "none.png", "c.png")):
        if name != "none.png":
            Path("images", name).write_bytes(png(number))
        asked, told = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."}
        chats.append({"image": name, "conversations": [asked, told]})
    Path("chats.json").write_text(json.dumps(chats))
    Path("run.yaml").write_text(RUN)


def typed() -> list[tuple[str, str]]:
    """Each command of the page and what is printed after it."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    return [
        (command, output)
        for block in blocks
        for command, _, output in (part.partition("\n") for part in block.removeprefix("$ ").split("\n$ "))
    ]


def test_the_commands_of_the_page_print_what_it_says(folder, capsys):
    commands = typed()
    assert len(commands) == 5
    for command, output in commands:
        program, *arguments = shlex.split(command)
        assert program == "mllm" and main(arguments) == 0
        assert capsys.readouterr().out.strip() == output.strip(), command
    listed = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    names = {path.name for path in Path("built").iterdir()}
    assert set(listed) <= names
    assert names == set(listed) | {name.replace("00000", "00001") for name in listed}


def test_a_record_is_written_as_the_page_shows_it(folder, capsys):
    import tarfile

    assert main(["data", "build", "chats.json", "built"]) == 0
    with tarfile.open("built/00000.tar") as tar:
        said = json.load(tar.extractfile("000000000.json"))
        assert tar.getnames()[:2] == ["000000000.json", "000000000.0.png"]
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert said == json.loads(shown)


def test_the_program_of_the_page_meets_every_sample(folder, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(program, "docs/data_build.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 2)[:2] for line in lines] == [[f"{number:09d}", "None"] for number in range(4)]
    assert all(f"'txt': {len('number 0')}" in line and "'png': " in line for line in lines)
