"""`mllm data show` on the tiny twins of recipes, and docs/data_show.md, which says what it prints."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.showing.rows import Shown
from data_pipelines.tokenizer import load_tokenizer
from mllm_jax.cli import build_parser, main
from mllm_jax.config import load_run
from mllm_jax.data_side import data_side
from mllm_jax.data_tools.showing import shown_stage
from mllm_jax.training.ingredients import FeedRequest
from tests.support.parsed_page import parsed

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAGE = (ROOT / "docs" / "data_show.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def beside_the_demo(small_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_demo)
    monkeypatch.setenv("COLUMNS", "110")


def shown_of(recipe: str, *changes: str, stage: str | None = None, rows: int = 4) -> Shown:
    return shown_stage(load_run(CONFIGS / recipe, ["variant=tiny", *changes]), stage, rows)


def first_batch(recipe: str, stage: str):
    """As training gets it: all lanes, all rows."""
    config = load_run(CONFIGS / recipe, ["variant=tiny"])
    (found,) = (each for each in config.stages if each.name == stage)
    with data_side(config).open_feed(FeedRequest(found, "train", sharding=None, position=None)) as feed:
        return next(feed).batch


@pytest.mark.parametrize(
    ("recipe", "stage"),
    [("llava15_7b.yaml", "instruct"), ("llava15_7b_dpo.yaml", "prefer"), ("blip2_opt_2_7b.yaml", "represent")],
)
def test_the_page_shows_the_batches_of_training(recipe: str, stage: str, tmp_path: Path, capsys) -> None:
    page = tmp_path / "page.html"
    asked = ["data", "show", str(CONFIGS / recipe), "variant=tiny", "--stage", stage, "--rows", "5"]
    assert main([*asked, "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"wrote {page}: 5 rows of stage {stage}\n"
    batch = first_batch(recipe, stage)
    sections = parsed(page.read_text(encoding="utf-8")).all("section")
    assert len(sections) == 5
    for index, section in enumerate(sections):
        learned = [
            int(re.match(r"token (\d+)", each.attributes["title"]).group(1))
            for each in section.all("span", "t")
            if "\nsupervised" in each.attributes["title"]
        ]
        assert learned == batch.targets[index][batch.loss_weights[index] > 0].tolist()
        assert sum(len(mark.all("span")) for mark in section.all("mark")) == len(learned)
        images = [image.pixels for image in section.all("img")]
        assert np.array_equal(images, batch.images[index][batch.image_mask[index]])
        assert len(section.all("article")) == batch.segment_ids[index].max()


def test_a_preference_pair_and_a_captioned_image() -> None:
    better, worse = shown_of("llava15_7b_dpo.yaml").rows[0].segments
    assert (better.answer, worse.answer) == ("chosen", "rejected") and better.key == worse.key
    (pair,) = shown_of("blip2_opt_2_7b.yaml", rows=1).rows[0].segments
    assert pair.slots == range(1) and len(pair.spans) == 2 and pair.spans[1].supervised
    tokenizer = load_tokenizer("demo/text_tokenizer", added_tokens=())
    assert pair.tokens[0].text == tokenizer.surrounds["cls_token"]


def test_tiles_of_an_image_stand_in_their_slots_and_boxes_in_the_whole_one() -> None:
    shown = shown_of("llava_next_7b.yaml", stage="instruct", rows=8)
    segments = [segment for row in shown.rows for segment in row.segments]
    labels = {span.label for segment in segments for span in segment.spans if hasattr(span, "label")}
    assert any("newlines among them" in label for label in labels)
    drawn = [(box.slot, segment.slots[0]) for segment in segments for box in segment.boxes]
    assert drawn and all(slot == base for slot, base in drawn)


def test_a_decoder_that_turns_heads_by_the_grid_has_positions_of_three_axes() -> None:
    grid = ("model.connector.kind=linear", "model.decoder.architecture.rotary_sections=[2,3,3]")
    (image,) = (span for span in shown_of("llava15_7b.yaml", *grid, rows=1).rows[0].segments[0].spans[1:2])
    assert image.positions == ((1, 1, 1), (1, 3, 3))


def test_rows_go_on_into_the_next_batch() -> None:
    rows = shown_of("llava15_7b.yaml", "stages.align.rows=4", "data.lanes=2", rows=6).rows
    assert [(row.batch, row.number) for row in rows] == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]
    assert len({segment.key for row in rows for segment in row.segments}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--stage", "instrct"], "there is no stage 'instrct'. Did you mean 'instruct'? Stages: align, instruct"),
        (["--rows", "0"], "--rows: found 0, expected at least 1"),
        (
            ["stages.align.row_lenght=8"],
            "command line: stages[0].row_lenght: unknown key. Did you mean 'row_length'",
        ),
        (
            ["--rows", "1", "data.sources.pairs.shards=nowhere/*.tar"],
            "data.sources.pairs: The list of shards is empty: no file matches 'nowhere/*.tar'",
        ),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(changes: list[str], message: str, capsys) -> None:
    assert main(["data", "show", str(CONFIGS / "llava15_7b.yaml"), "variant=tiny", *changes]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_page_of_the_documentation_says_what_is_printed(capsys, small_demo: Path) -> None:
    blocks = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for command, printed in zip(blocks[::2], blocks[1::2], strict=True):
        arguments = shlex.split(command.replace("configs/", f"{CONFIGS}/"))
        assert arguments[0] == "mllm" and main(arguments[1:]) == 0
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert lines == printed.splitlines()


def test_the_page_of_the_documentation_names_every_option() -> None:
    options = build_parser().parse_args(["data", "show", "RUN.yaml"])
    named = set(re.findall(r"`--([a-z]+)", PAGE))
    assert (
        named
        == {"stage", "rows", "output", "terminal"}
        == vars(options).keys()
        - {
            "run",
            "run_file",
            "overrides",
            "traceback",
        }
    )
