"""What is shown of a row is what stands in the arrays of its batch."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.assemble import erase
from data_pipelines.boxes import Box
from data_pipelines.quota import Skip
from data_pipelines.rendered import NEWLINE, ImageLayout
from data_pipelines.showing.rows import ImageSpan, ShownPadding, TextSpan
from data_pipelines.showing.token_texts import TokenTexts
from tests.support.shown_batches import FEATURES, answered, packed, read
from tests.support.small_tokenizers import small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer("bpe", tmp_path_factory.mktemp("tokenizer"))


def text_of(segment):
    return "".join(token.text for token in segment.tokens)


def test_a_row_made_by_hand(tokenizer):
    """Two segments, the first with an image, then padding; one target has half a weight."""
    batch, placed = packed([[answered(tokenizer, "a", "b", images=1, key="first"), answered(tokenizer, "c", "d")]], 16)
    a, b, c, d = (tokenizer.encode(letter, start=False)[0] for letter in "abcd")
    image, end = tokenizer.image_id, tokenizer.eos_id
    batch.tokens[0] = [image] * 3 + [a, b, end, c, d, end] + [0] * 7
    batch.targets[0] = [image, image, a, b, end, 0, d, end, 0] + [0] * 7
    batch.loss_weights[0] = [0, 0, 0, 1, 0.5, 0, 1, 1, 0] + [0] * 7
    batch.segment_ids[0] = [1] * 6 + [2] * 3 + [0] * 7
    batch.positions[0] = [0, 1, 2, 3, 4, 5, 0, 1, 2] + [0] * 7
    batch.image_index[0] = [0, 1, 2] + [-1] * 13
    (row,) = read(tokenizer, batch, placed)
    first, second, padding = row.parts
    assert (first.key, first.source, first.start, first.stop) == ("first", "pairs", 0, 6)
    assert first.spans[0] == ImageSpan((0,), 3, 0, start=0, positions=((0,), (2,)))
    assert first.spans[0].label == "[slot 0: 3 places]"
    assert [span.supervised for span in first.spans[1:]] == [False, True]
    assert [token.text for token in first.tokens] == ["a", "b", tokenizer.eos_token]
    assert [token.weight for token in first.tokens] == [0, 1, 0.5]
    assert [token.target for token in first.tokens] == [f'"b" ({b})', f'"{tokenizer.eos_token}" ({end})', None]
    assert [(token.place, token.position) for token in second.tokens] == [(6, (0,)), (7, (1,)), (8, (2,))]
    assert padding == ShownPadding(9, 16) and first.slots == range(1) and not second.slots
    assert np.array_equal(row.slots[0].pixels, batch.images[0, 0]) and row.slots[1].pixels is None
    assert row.counts.shares() == {
        "filled": 9 / 16,
        "padding": 7 / 16,
        "supervised": 4 / 9,
        "image slots filled": 1 / 4,
    }


LETTERS = st.text("abc de", min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(drawn=st.lists(st.lists(st.tuples(LETTERS, LETTERS, st.integers(0, 1)), max_size=3), min_size=1, max_size=3))
def test_every_token_and_every_mark_of_any_row_is_that_of_the_batch(tokenizer, drawn):
    records = [[answered(tokenizer, *each, key=f"{number}") for number, each in enumerate(row)] for row in drawn]
    batch, placed = packed(records, row_length=64)
    for index, row in enumerate(read(tokenizer, batch, placed)):
        tokens = [token for segment in row.segments for token in segment.tokens]
        places = [token.place for token in tokens]
        assert [token.index for token in tokens] == batch.tokens[index][places].tolist()
        assert [token.position for token in tokens] == [(place,) for place in batch.positions[index][places].tolist()]
        marked = [token.place for token in tokens if token.weight > 0]
        assert marked == (np.flatnonzero(batch.loss_weights[index] > 0) + 1).tolist()
        in_text = (batch.segment_ids[index] > 0) & (batch.image_index[index] < 0)
        assert places == np.flatnonzero(in_text).tolist()
        assert [segment.number for segment in row.segments] == sorted(set(batch.segment_ids[index].tolist()) - {0})
        assert [segment.key for segment in row.segments] == [record.key for record in records[index]]
        assert not any(segment.astray for segment in row.segments)
        assert row.counts.filled == (batch.segment_ids[index] > 0).sum()
        assert [slot.number for slot in row.slots if slot.pixels is not None] == list(range(row.counts.images))


def test_a_target_that_is_not_the_token_that_follows_is_told(tokenizer):
    batch, placed = packed([[answered(tokenizer, "ab", "cd")]])
    learned = np.flatnonzero(batch.loss_weights[0])
    batch.targets[0, learned[0]] += 1
    (row,) = read(tokenizer, batch, placed)
    assert row.segments[0].astray == 1 and row.segments[0].problem == "1 target not the token that follows"


def test_a_lost_record_is_padding_with_its_key_and_the_cause(tokenizer):
    records = [answered(tokenizer, "ab", "c", images=1, key=key) for key in ("one", "two", "three")]
    batch, placed = packed([records])
    for number in (0, 2):
        erase(batch, placed[number])
        placed[number] = replace(placed[number], lost=Skip("image_corrupt", placed[number].rendered.key, "no PNG"))
    (row,) = read(tokenizer, batch, placed)
    first, kept, last, padding = row.parts
    assert (first.key, first.why, last.key, padding.key) == ("one", "image_corrupt: no PNG", "three", None)
    assert kept.key == "two" and [part.start for part in row.parts[1:]] == [part.stop for part in row.parts[:-1]]
    assert [slot.pixels is None for slot in row.slots] == [True, False, True, True]


def test_answers_of_a_preference_pair_share_their_image(tokenizer):
    chosen, rejected = (answered(tokenizer, "ab", answer, images=1) for answer in ("c", "dd"))
    pair = replace(chosen, rejected=rejected, reference=(-1.5, -2.0))
    batch, placed = packed([[pair]], preferences=True, references=True)
    (row,) = read(tokenizer, batch, placed)
    better, worse = row.segments
    assert (better.answer, worse.answer) == ("chosen", "rejected")
    assert (better.reference, worse.reference) == (-1.5, -2.0)
    assert better.slots == worse.slots == range(1)
    assert better.spans[0].slots == worse.spans[0].slots == (0,)


def test_merged_tiles_are_one_stretch_and_the_base_tile_another(tokenizer):
    """Three features of a base tile, then those of two tiles in turn, an end of row after each."""
    index = np.array([0, 1, 2, 3, 6, NEWLINE, 4, 7, NEWLINE, 5, 8, NEWLINE], np.int32)
    whole = answered(tokenizer, "ab", "[0.1,0.2,0.3,0.4]")
    shown = np.full(len(index), tokenizer.image_id, np.int32)
    marks = np.append(np.zeros(len(index), bool), whole.supervised)
    record = replace(
        whole,
        tokens=np.append(shown, whole.tokens),
        supervised=marks,
        in_answer=marks,
        image_starts=(0,),
        images=answered(tokenizer, "", "", images=1).images,
        layouts=(ImageLayout(3, index),),
    )
    batch, placed = packed([[answered(tokenizer, "a", "b", images=1), record]])
    (row,) = read(tokenizer, batch, placed)
    base, merged = (span for span in row.segments[1].spans if isinstance(span, ImageSpan))
    assert (base.label, merged.label) == ("[slot 1: 3 places]", "[slots 2 to 3: 9 places, 3 newlines among them]")
    assert [box.slot for box in row.segments[1].boxes] == [1]
    (row,) = read(tokenizer, batch, placed, whole_slot=lambda slots: slots - 1)
    assert [box.slot for box in row.segments[1].boxes] == [3]


def test_a_box_belongs_to_the_last_image_before_it_and_is_drawn_in_shares_alone(tokenizer):
    image = [tokenizer.image_id] * FEATURES
    texts = ["at [0.1, 0.2, 0.3, 0.4]", "and [0.5,0.5,1,1], not [10, 20, 30, 40]"]
    tokens = [index for text in texts for index in (*image, *tokenizer.encode(text, start=False))]
    starts = (0, len(image) + len(tokenizer.encode(texts[0], start=False)))
    none = np.zeros(len(tokens), bool)
    two = answered(tokenizer, "", "", images=2)
    record = replace(two, tokens=np.array(tokens), supervised=none, in_answer=none, image_starts=starts)
    batch, placed = packed([[record]], row_length=128)
    (row,) = read(tokenizer, batch, placed)
    (segment,) = row.segments
    assert [(box.number, box.slot) for box in segment.boxes] == [(1, 0), (2, 1), (3, None)]
    assert segment.boxes[0].box == Box(0.1, 0.2, 0.3, 0.4)
    named = [[token.index for token in segment.tokens if token.box == number] for number in (1, 2, 3)]
    assert [tokenizer.decode(ids).strip(" ,") for ids in named] == [
        "[0.1, 0.2, 0.3, 0.4]",
        "[0.5,0.5,1,1]",
        "[10, 20, 30, 40]",
    ]


def test_positions_of_several_axes_and_instructions(tokenizer):
    asked = tuple(tokenizer.encode("what?", start=False))
    record = replace(answered(tokenizer, "a", "b", images=1), instructions=(np.array(asked, np.int32),))
    batch, placed = packed([[record]], instruction_tokens=8)
    axes = np.arange(3) + 10 * batch.positions[..., None]
    (row,) = read(tokenizer, batch, placed, turning=lambda _: axes, instruction_texts=TokenTexts(tokenizer))
    assert row.segments[0].tokens[0].position == (30, 31, 32)
    assert row.segments[0].spans[0].positions == ((0, 1, 2), (20, 21, 22))
    assert row.slots[0].instruction == "what?"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes"])
def test_tokens_together_are_the_text(kind, tmp_path):
    tokenizer = small_tokenizer(kind, tmp_path)
    said = 'red, "blue" <script> 0.25  two\nlines'
    batch, placed = packed([[answered(tokenizer, "so: ", said)]], row_length=128)
    (row,) = read(tokenizer, batch, placed)
    parts = [token.text if token.kind != "bytes" else chr(int(token.text[3:5], 16)) for token in row.segments[0].tokens]
    assert "".join(parts).replace("⏎", "") == "so: " + said + tokenizer.eos_token


def test_bytes_are_called_by_their_names_and_say_what_they_spell(tokenizer):
    batch, placed = packed([[answered(tokenizer, "a", "\u2603")]])
    (row,) = read(tokenizer, batch, placed)
    span = row.segments[0].spans[1]
    assert isinstance(span, TextSpan) and [token.text for token in span.tokens[:3]] == ["<0xE2>", "<0x98>", "<0x83>"]
    assert [token.kind for token in span.tokens] == ["bytes", "bytes", "bytes", "special"]
    assert span.tokens[0].spells == '"\u2603"' and span.tokens[3].spells is None
