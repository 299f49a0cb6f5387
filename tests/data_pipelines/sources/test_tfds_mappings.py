"""What examples become, as TFDS gives them: texts as bytes, several as lists or arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.quota import Skip
from data_pipelines.record import ImageBytes, TextPart
from data_pipelines.sources.tfds_mappings import CaptionMapping, ClassMapping, QuestionMapping

IMAGE = {"image": b"pixels"}
CAPTION = CaptionMapping(caption="text")
VQA = QuestionMapping(question="qa/question", answer="qa/answer")
CLASSES = ClassMapping()


def said(mapping, example, seed=0, names=("a_b", "c")):
    """The texts of the turns, or the cause of a skip."""
    record = mapping.record(IMAGE | example, "key", seed, names)
    if isinstance(record, Skip):
        assert record.key == "key" and record.detail
        return record.cause
    assert record.turns[0].parts[0].source == ImageBytes(b"pixels")
    texts = [[part.text for part in turn.parts if isinstance(part, TextPart)] for turn in record.turns]
    assert [turn.role for turn in record.turns] == ["user", "assistant"] * (len(texts) // 2)
    return [text for turn in texts for text in turn]


def test_captions_are_picked_by_the_seed():
    listed = {"text": np.array([b" one ", b"two", b"  "], dtype=object)}
    assert [said(CAPTION, listed, seed) for seed in range(3)] == [["one"], ["two"], ["one"]]
    asking = CaptionMapping(caption="text", prompts=("Describe it.", "What is it?"))
    assert said(asking, {"text": b"a cat"}, 1) == ["What is it?", "a cat"]


def test_of_several_answers_the_most_common_or_one_by_place():
    example = {"qa": {"question": b"how many?", "answer": [b"3", b"4", b"4"]}}
    assert said(VQA, example) == ["how many?", "4"]
    assert said(VQA.model_copy(update={"pick": "by_place"}), example, 3) == ["how many?", "3"]
    assert said(VQA, {"qa": {"question": b"how many?", "answer": b"2"}}) == ["how many?", "2"]


def test_several_questions_are_turns_of_one_conversation():
    example = {"qa": {"question": [b"one?", b"two?"], "answer": [b"1", np.array([b"2", b"2"], dtype=object)]}}
    asking = VQA.model_copy(update={"instruction": "Be brief."})
    assert said(asking, example) == ["one?\nBe brief.", "1", "two?\nBe brief.", "2"]


def test_classes_are_named():
    assert said(CLASSES, {"label": np.int64(0)}) == ["What is in the image?", "a b"]
    assert said(ClassMapping(names={"c": "see"}, questions=("A?", "B?")), {"label": 1}, 3) == ["B?", "see"]


@pytest.mark.parametrize(
    ("mapping", "example", "cause"),
    [
        (CAPTION, {"text": b" "}, "empty_caption"),
        (CAPTION, {"text": []}, "empty_caption"),
        (CAPTION, {"text": b"\xff"}, "not_utf8"),
        (CAPTION, {"text": "\ud800"}, "not_utf8"),
        (CAPTION, {"text": 3}, "not_text"),
        (CAPTION, {}, "not_text"),
        (CAPTION, {"text": [[b"nested"]]}, "not_text"),
        (CAPTION, {"text": b"a", "image": b""}, "empty_image"),
        (CAPTION, {"text": b"a", "image": None}, "missing_image"),
        (CAPTION, {"text": b"a", "image": np.zeros((2, 2, 3), np.uint8)}, "missing_image"),
        (VQA, {"qa": {"question": [], "answer": []}}, "empty_question"),
        (VQA, {"qa": {"question": [b"a?", b"b?"], "answer": [b"a"]}}, "answer_count"),
        (VQA, {"qa": {"question": [b"a?", b" "], "answer": [b"a", b"b"]}}, "answer_count"),
        (VQA, {"qa": {"question": [b"a?"], "answer": b"a"}}, "answer_count"),
        (VQA, {"qa": {"question": b"a?", "answer": []}}, "empty_answer"),
        (VQA, {"qa": 3}, "not_text"),
        (CLASSES, {"label": -1}, "no_label"),
        (CLASSES, {"label": 2}, "no_label"),
        (CLASSES, {"label": b"cat"}, "no_label"),
    ],
)
def test_a_bad_example_is_a_skip(mapping, example, cause):
    assert said(mapping, example) == cause


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-3, 3), st.binary(max_size=4), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["question", "answer"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(VALUES, VALUES, VALUES, VALUES, st.integers(0, 2**64 - 1))
def test_whatever_an_example_holds_is_a_conversation_or_a_skip(image, text, asked, label, seed):
    example = {"image": image, "text": text, "qa": asked, "label": label}
    for mapping in (CAPTION, VQA, CLASSES):
        record = mapping.record(example, "key", seed, ("a", "b"))
        if isinstance(record, Skip):
            continue
        assert record.turns[0].parts[0].source.data == image
        assert all(part.text.strip() for turn in record.turns for part in turn.parts if isinstance(part, TextPart))
