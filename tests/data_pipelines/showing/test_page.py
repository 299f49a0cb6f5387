"""The page stands alone, holds what the batch holds, and makes no markup of what data says."""

import base64
import hashlib

import numpy as np
import pytest

from data_pipelines.showing.page import page_of
from tests.support.parsed_page import parsed
from tests.support.shown_batches import answered, packed, read, shown
from tests.support.small_tokenizers import small_tokenizer

SCRIPT = "<script>alert('x')</script> & </span> \" onmouseover=\"y"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer("bpe", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def batch(tokenizer):
    rows = [
        [answered(tokenizer, "a box? ", "at [0.25,0.5,0.75,1]", images=1), answered(tokenizer, "b ", "c", images=2)],
        [answered(tokenizer, SCRIPT, SCRIPT, images=1, key=f"{SCRIPT}:1")],
    ]
    return packed(rows, row_length=160)


@pytest.fixture(scope="module")
def rows(tokenizer, batch):
    return read(tokenizer, *batch)


@pytest.fixture(scope="module")
def page(rows):
    return parsed(page_of(shown(rows)))


def test_what_is_supervised_is_marked_and_nothing_else(page, rows, batch):
    for section, row in zip(page.all("section"), rows, strict=True):
        marked = [each.text for mark in section.all("mark") for each in mark.all("span", "t")]
        assert marked == [token.text for each in row.segments for token in each.tokens if token.weight > 0]
        assert len(marked) == np.count_nonzero(batch[0].loss_weights[row.number])


def test_images_are_the_pixels_of_the_batch(page, batch):
    for index, section in enumerate(page.all("section")):
        images = [image.pixels for image in section.all("img")]
        assert np.array_equal(images, batch[0].images[index][batch[0].image_mask[index]])


def test_a_token_says_its_id_its_place_and_its_weight(page, rows):
    token = next(token for token in rows[0].segments[1].tokens if token.weight)
    told = [each.attributes["title"] for each in page.all("section")[0].all("span", "t")]
    expected = f"token {token.index} at place {token.place}\nposition {token.position[0]}\nsupervised, weight 1"
    assert sum(each.startswith(expected) for each in told) == 1


def test_boxes_are_drawn_over_the_image_they_are_written_about(page):
    first, *others = page.all("section")[0].all("figure")
    (box,) = first.all("rect")
    assert [float(box.attributes[name]) for name in ("x", "y", "width", "height")] == [0.25, 0.5, 0.5, 0.5]
    assert not any(figure.all("rect") for figure in others)


def test_text_of_data_is_text_on_the_page(page, rows):
    (script,) = page.all("script")
    assert "alert" not in script.text
    section = page.all("section")[1]
    assert not any(name.startswith("on") for each in page.within for name in each.attributes)
    assert section.all("code")[0].text == f"{SCRIPT}:1"
    plain = "".join(token.text for token in rows[1].segments[0].tokens)
    assert section.all("p", "tokens")[0].text == "[slot 0: 3 places]" + plain


def test_nothing_is_loaded_and_no_other_script_would_run(page):
    places = [value for each in page.within for name, value in each.attributes.items() if name in ("src", "href")]
    assert places and all(place.startswith("data:") for place in places)
    assert "url(" not in page.all("style")[0].text and "@import" not in page.all("style")[0].text
    (policy,) = (each.attributes["content"] for each in page.all("meta") if "http-equiv" in each.attributes)
    digest = base64.b64encode(hashlib.sha256(page.all("script")[0].text.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_the_header_says_what_is_shown(page, rows):
    (header,) = page.all("header")
    assert header.all("h1")[0].text.startswith("runs/tiny, stage align")
    told = {pair.all("dt")[0].text: pair.all("dd")[0].text for pair in header.all("dl")[0].all("div")}
    assert told == {"shown": "2 rows", "template": "plain", "left out on the way": "too_long 2"}
    filled = sum(row.counts.filled for row in rows) / 320
    assert header.all("b")[0].text == f"{filled:.1%}"
