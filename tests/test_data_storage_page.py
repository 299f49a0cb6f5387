"""docs/data_storage.md says what is: its defaults, its extras, and what a run does when a store fails."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from data_pipelines.storage import Storage, StorageConfig
from data_pipelines.stores.errors import EXTRAS
from tests.support.range_server import range_server

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data_storage.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (`.+) \| (tries again|stops) \|$", PAGE, re.MULTILINE))
FAULTS = [(fault, does) for row, does in ROWS.items() for fault in re.findall(r"`(\d+|\w+)`", row)]
CONTENTS = bytes(100)


def test_the_defaults_are_those_of_the_config():
    written = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    assert written == {"data": {"storage": StorageConfig().model_dump()}}


def test_the_extras_are_those_of_the_package():
    named = set(re.findall(r"mllm_jax\[(\w+)\]", PAGE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert named == set(EXTRAS.values()) and named <= extras.keys()


@pytest.mark.parametrize(("fault", "does"), [pair for pair in FAULTS if pair[0] != "request_seconds"])
def test_a_run_does_what_the_page_says_when_a_store_fails(fault, does):
    store = Storage(StorageConfig(first_wait_seconds=0.001, request_seconds=0.5))
    with range_server() as server:
        server.files["a.tar"], server.slow_seconds = CONTENTS, 1.0
        path = server.address("a.tar")
        assert store.size(path) == len(CONTENTS)
        if fault == "changed":
            server.versions["a.tar"] = "2"
        else:
            server.faults = [int(fault) if fault.isdigit() else fault]
        if does == "stops":
            with pytest.raises(OSError, match=re.escape(f"could not read {path} (bytes 0 to 99): ")):
                store.read(path, 0, 9)
            assert server.asked()["a.tar", 0, 100] == 1
        else:
            assert store.read(path, 0, 9) == CONTENTS[:9]
            assert server.asked()["a.tar", 0, 100] == 2
        store.close()


def test_the_page_lists_every_fault_that_the_server_of_the_tests_can_have():
    assert {"503", "reset", "short", "slow", "whole", "404", "changed"} <= {fault for fault, _ in FAULTS}
