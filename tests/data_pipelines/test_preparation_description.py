"""A preparation that is described makes the same batches wherever it is made."""

import json
import subprocess
import sys

import pytest

from data_pipelines.preparation_description import PreparationDescription
from tests.support.described import descriptions, open_described, same, write_pictures
from tests.support.processes import ROOT
from tests.support.small_tokenizers import small_tokenizer

KINDS = ("plain", "tiled", "augmented", "instructed", "pairs", "blank")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("shards"), (20, 9))


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    return descriptions(small_tokenizer("bytes", tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_as_json_makes_the_same(described, sources, kind):
    value = json.loads(json.dumps(described[kind].model_dump(mode="json")))
    again = PreparationDescription.model_validate(value)
    assert again.model_dump(mode="json") == value
    with open_described(described[kind], sources, 0) as one, open_described(again, sources, 0) as two:
        first, second = next(one), next(two)
    assert same(first, second)
    assert first.batch.images.any() == (kind != "blank") and first.report.records > 6
    assert (first.batch.instructions is None) == (kind != "instructed")


def test_a_process_that_makes_it_imports_nothing_heavy():
    code = (
        "import sys, data_pipelines.loading.worker;"
        "print([m for m in ('jax', 'torch', 'tensorflow', 'pyarrow', 'mllm_jax', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
