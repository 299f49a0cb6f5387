import json

import pytest

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, ReferenceScores, TextPart
from data_pipelines.sources.preference_json import PreferenceJsonConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage

ASKED = [{"from": "human", "value": "<image>\nWhat is it?"}]
LLAVA = {"image": "a.png", "conversations": ASKED, "chosen": "A cat.", "rejected": "A dog."}


def said(role, *parts):
    return {"role": role, "content": [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]}


@pytest.fixture
def read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"pixels")

    def read_with(*values, name="pairs.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, values)))
        return list(records(PreferenceJsonConfig(files=str(tmp_path / name), images=str(tmp_path)).open(Storage())))

    return read_with


@pytest.mark.parametrize(
    "value",
    [
        LLAVA,
        LLAVA | {"chosen": {"from": "gpt", "value": "A cat."}, "rejected": {"from": "gpt", "value": "A dog."}},
        {"images": ["a.png"], "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
        {"image": "a.png", "question": "What is it?", "chosen": " A cat. ", "rejected": "A dog."},
        {
            "images": ["a.png"],
            "prompt": [said("user", "", "What is it?")],
            "chosen": [said("assistant", "A cat.")],
            "rejected": [said("assistant", "A dog.")],
        },
        {
            "image": None,
            "images": ["a.png"],
            "chosen": [{"role": "user", "content": "What is it?"}, said("assistant", "A cat.")],
            "rejected": [{"role": "user", "content": "What is it?"}, said("assistant", "A dog.")],
        },
    ],
    ids=["llava", "llava_messages", "prompt", "question", "messages", "whole_conversations"],
)
def test_every_shape_is_the_same_pair(read, tmp_path, value):
    (record,) = read(value)
    image = ImagePart(ByteRange(str(tmp_path / "a.png"), 0, 6))
    assert [turn.parts for turn in record.turns] == [(image, TextPart("What is it?")), (TextPart("A cat."),)]
    assert record.rejected.parts == (TextPart("A dog."),) and record.rejected.role == "assistant"
    assert record.reference is None


def test_of_several_turns_the_last_answer_alone_is_learned(read):
    earlier = [*ASKED, {"from": "gpt", "value": "A pet."}, {"from": "human", "value": "Which?"}]
    (record,) = read(LLAVA | {"conversations": [{"from": "system", "value": "Be kind."}, *earlier]})
    assert [turn.role for turn in record.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.learn for turn in record.turns] == [False, False, False, False, True]


def test_images_come_before_the_first_question_behind_a_system_turn(read):
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is it?"}]
    (record,) = read({"image": "a.png", "prompt": prompt, "chosen": "A cat.", "rejected": "A dog."})
    assert isinstance(record.turns[1].parts[0], ImagePart) and record.turns[0].role == "system"


def test_what_a_reference_model_said_is_read(read):
    scores = {"reference_chosen": -1.5, "reference_rejected": -2, "reference_tokens": [9, 11]}
    (record,) = read(LLAVA | scores)
    assert record.reference == ReferenceScores(-1.5, -2.0, (9, 11))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"rejected": None}, "no_rejected"),
        ({"rejected": []}, "no_rejected"),
        ({"chosen": "  "}, "no_chosen"),
        ({"chosen": 3}, "no_chosen"),
        ({"rejected": " A cat.\n"}, "equal_answers"),
        ({"conversations": []}, "no_prompt"),
        ({"conversations": [*ASKED, {"from": "gpt", "value": "A cat."}]}, "turn_order"),
        ({"chosen": {"role": "user", "content": "A cat."}}, "turn_order"),
        ({"chosen": [*ASKED, {"from": "gpt", "value": "A cat."}]}, "prompts_differ"),
        ({"chosen": "A cat: <image>"}, "image_in_answer"),
        ({"image": ["a.png", "a.png"]}, "image_count"),
        ({"image": "b.png"}, "missing_image"),
        ({"image": 3}, "not_text"),
        ({"conversations": [{"from": "human", "value": 3}]}, "not_text"),
        ({"conversations": [3]}, "not_text"),
        ({"chosen": [3]}, "not_text"),
        ({"reference_chosen": -1.0}, "bad_reference"),
        ({"reference_chosen": -1.0, "reference_rejected": float("nan"), "reference_tokens": [1, 2]}, "bad_reference"),
    ],
    ids=str,
)
def test_what_is_no_pair_is_skipped_with_its_cause_and_key(read, tmp_path, change, cause):
    skip, good = read(LLAVA | change, LLAVA)
    assert isinstance(skip, Skip) and (skip.cause, skip.key) == (cause, f"{tmp_path}/pairs.jsonl:0")
    assert not isinstance(good, Skip)
