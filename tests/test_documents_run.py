"""The run file of docs/data_interleaved.md on small data: a Flamingo that learns from documents and pairs."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from data_pipelines.packing import Overlong
from data_pipelines.sources.choice import SourceConfig
from data_pipelines.sources.documents import DocumentOptions
from data_pipelines.sources.mmc4 import Mmc4Config
from data_pipelines.sources.obelics import ObelicsConfig
from data_pipelines.sources.source import records
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from data_pipelines.tokenizer import load_tokenizer
from mllm_jax.assemble import make_ingredients
from mllm_jax.config import RunConfig, load_run
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import batch_sharding
from mllm_jax.training.ingredients import FeedRequest
from mllm_jax.training.run import Outcome, run_stages
from tests.support.captioned_colours import colour_of, write_captioned_colours
from tests.support.documents import seen
from tests.support.run_files import run_of
from tests.support.tiny_stream import tar_bytes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data_interleaved.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
STEPS = 6
END_OF_CHUNK = "<|endofchunk|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of two colours, and documents in tars that show some of them, in base64."""
    folder = tmp_path_factory.mktemp("documents")
    write_captioned_colours(folder)
    storage = Storage()
    pairs = [
        (storage.read_image(record.turns[0].parts[0].source), record.turns[1].parts[0].text)
        for record in records(WebDatasetConfig(shards=f"{folder}/held_out/*.tar").open(storage))
    ]
    members = []
    for number in range(40):
        shown = [pairs[(7 * number + offset) % len(pairs)] for offset in range(1 + number % 5)]
        info = [
            {"image_base64": base64.b64encode(image).decode(), "matched_text_index": 1 + index, "matched_sim": 0.3}
            for index, (image, _) in enumerate(shown)
        ]
        # The second image has a sentence that says nothing of it.
        info += [dict(info[0], matched_text_index=0, matched_sim=0.1)]
        value = {"text_list": ["words", *(caption for _, caption in shown)], "image_info": info}
        members.append((f"{number:04d}.json", json.dumps(value).encode()))
    (folder / "mmc4.tar").write_bytes(tar_bytes(members))
    return folder


def run_file(folder: Path) -> RunConfig:
    """The page's run file, in a tiny twin and on the data of the folder."""
    block = BLOCKS[0]
    written = folder / "run.yaml"
    written.write_text(yaml.safe_dump(block | {"extends": str(ROOT / "configs" / block["extends"])}))
    encoder = {"image_size": [8, 8], "patch_size": 4, "width": 16, "layers": 1, "heads": 2, "feed_forward_width": 16}
    changes = {
        "variant": "tiny",
        "output": f"{folder}/run",
        "model.encoder.architecture": encoder,
        "model.tokenizer": f"{folder}/tokenizer",
        "data.lanes": 2,
        "data.skip_quota": 0.2,
        "data.sources.documents.files": f"{folder}/mmc4.tar",
        "data.sources.pairs.shards": f"{folder}/shards/*.tar",
        "stages.pretrain.row_length": 48,
        "stages.pretrain.rows": 4,
        "stages.pretrain.steps": STEPS,
    }
    return load_run(written, [f"{name}={json.dumps(value)}" for name, value in changes.items()])


def test_supervised_are_the_texts_and_their_ends_and_images_stand_where_the_document_says(folder: Path) -> None:
    config = run_file(folder)
    tokenizer = load_tokenizer(folder / "tokenizer", (END_OF_CHUNK, "<image>"))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    feed = make_ingredients(config).open_feed(FeedRequest(config.stages[0], "train", batch_sharding(mesh), None))
    batches = [jax.device_get(next(feed).batch) for _ in range(4)]
    feed.close()
    found = [
        (batch.images[row], *(array[row][batch.segment_ids[row] == number] for array in of_tokens))
        for batch in batches
        for of_tokens in [(batch.tokens, batch.image_index, batch.loss_weights)]
        for row in range(len(batch.tokens))
        for number in range(1, batch.segment_ids[row].max() + 1)
    ]
    assert {len(np.flatnonzero(features >= 0)) for _, _, features, _ in found} >= {1, 2, 3}
    for images, tokens, features, learned in found:
        of_image = features >= 0
        assert ((tokens == tokenizer.image_id) == of_image).all()
        places = np.flatnonzero(of_image)
        end = tokens == tokenizer.eos_id
        # Of a pair, before whose image there is no text, the end is learned too.
        told = ~of_image & (np.cumsum(of_image) > 0) & ~(end & (places[0] > tokenizer.starts_with_bos))
        # What a place predicts is the token after it; the last one predicts nothing.
        assert learned.tolist() == [*told[1:], False]
        assert end[-1] or len(tokens) > 30
        assert not end[-1] or tokens[-2] == tokenizer.special_id(END_OF_CHUNK)
        for start, stop in zip(places, [*places[1:], len(tokens)], strict=True):
            pixels = images[features[start]]
            said = tokenizer.decode(tokens[start + 1 : stop]).split()
            assert said == [colour_of(pixels[:, :4]), colour_of(pixels[:, 4:])]


def test_a_tiny_flamingo_learns_from_documents_and_pairs(folder: Path) -> None:
    config = run_file(folder)
    assert run_stages(config.stages, run_of(config)) is Outcome.FINISHED
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS and losses[-1] < losses[0]
    assert sum(line.get("skipped_filtered_similarity", 0) for line in lines) > 0


def test_the_pages_run_files_are_read_and_its_words_are_those_of_the_configs() -> None:
    choice = TypeAdapter(SourceConfig)
    for block in BLOCKS:
        assert all(choice.validate_python(source).kind for source in block["data"]["sources"].values())
    for name in (*DocumentOptions.model_fields, *Mmc4Config.model_fields, *ObelicsConfig.model_fields):
        assert f"`{name}`" in PAGE or name in ("kind", "index_cache"), name
    for value in get_args(Overlong):
        assert f"`{value}`" in PAGE, value


def test_the_pages_rules_for_names_of_images(tmp_path: Path) -> None:
    url = "https://example.org/a.jpg"
    members = [("000017.json", json.dumps({"images": [url, None], "texts": [None, "A cat."]}).encode())]
    members += [(f"000017.{hashlib.sha256(url.encode()).hexdigest()}.jpg", b"pixels")]
    (tmp_path / "obelics.tar").write_bytes(tar_bytes(members))
    (record,) = records(ObelicsConfig(files=f"{tmp_path}/obelics.tar").open(Storage()))
    assert seen(record) == [b"pixels", "A cat."]
