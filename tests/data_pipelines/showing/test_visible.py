"""Nothing of a text is invisible, and nothing of it moves what stands beside it."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.showing.visible import quoted, visible


def test_controls_and_what_turns_the_direction_are_spelled_out():
    assert visible("a\x00b\x1b[31m\tc") == "a␀b␛[31m␉c"
    assert visible("\u202egnp.exe\u200b\x7f\u2028") == "[U+202E]gnp.exe[U+200B][U+007F][U+2028]"
    assert visible("two\nlines") == "two⏎\nlines" and quoted("two\nlines") == '"two⏎lines"'


def test_what_can_be_seen_stays():
    assert visible("été 猫 שלום مرحبا <b>&amp;") == "été 猫 שלום مرحبا <b>&amp;"


@given(st.text())
def test_of_any_text_only_line_breaks_are_left_to_take_effect(text):
    assert all(character == "\n" or unicodedata.category(character)[0] != "C" for character in visible(text))
