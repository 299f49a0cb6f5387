"""The terminal tells the same without colours as with them."""

import io

import pytest
from rich.console import Console

from data_pipelines.showing.terminal import print_rows
from tests.support.shown_batches import answered, packed, read, shown
from tests.support.small_tokenizers import small_tokenizer


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    tokenizer = small_tokenizer("bpe", tmp_path_factory.mktemp("tokenizer"))
    records = [answered(tokenizer, "red? [b]", "blue", images=1, key="a.tar:0"), answered(tokenizer, "a", "b")]
    return shown(read(tokenizer, *packed([records])))


def printed(rows, **options):
    file = io.StringIO()
    print_rows(rows, Console(file=file, width=100, **options))
    return file.getvalue()


def test_without_colours_marks_are_signs(rows):
    lines = printed(rows)
    assert "segment 1 a.tar:0 (source pairs, places 0 to" in lines
    assert "⟦blue</s>⟧" in lines and "red?" in lines and "[slot 0: 3 places]" in lines
    padding = rows.counts.places - rows.counts.filled
    assert f"╱╱ {padding} places of padding" in lines and "left out on the way: too_long 2" in lines
    assert "\x1b" not in lines


def test_with_colours_images_are_drawn(rows):
    lines = printed(rows, force_terminal=True, color_system="truecolor")
    red, green, blue = rows.rows[0].slots[0].pixels[0, 0].tolist()
    assert f"38;2;{red};{green};{blue}" in lines
