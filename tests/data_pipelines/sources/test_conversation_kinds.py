"""The spellings of conversations besides LLaVA's: ShareGPT's and OpenAI's messages, and Qwen-VL's JSON."""

import json

import pytest

from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart, TextPart
from data_pipelines.sources.choice import source_of_path
from data_pipelines.sources.qwen_vl_json import QwenVlJsonConfig
from data_pipelines.sources.sharegpt_json import ShareGptJsonConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage


@pytest.fixture
def read(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        (images / name).write_bytes(name.encode())

    def read_as(kind, *values):
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return list(records(kind(files=str(path), images=str(images)).open(Storage())))

    return read_as


def spelled(record):
    """Roles, and texts with the names of the images among them."""
    return [
        (turn.role, [part.text if isinstance(part, TextPart) else part.source.path[-5:] for part in turn.parts])
        for turn in record.turns
    ]


ASKED = ("user", ["a.png", "What is it?"])
ANSWERED = ("assistant", ["A cat."])
ANSWER = {"role": "assistant", "content": "A cat."}
SHAREGPT = {
    "marks in the text": {
        "messages": [{"role": "user", "content": "<image>What is it?"}, ANSWER],
        "images": ["a.png"],
    },
    "from and value": {
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}],
        "images": ["a.png"],
    },
    "no marks": {"messages": [{"role": "user", "content": "What is it?"}, ANSWER], "images": ["a.png"]},
    "parts beside a list": {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ],
        "images": ["a.png"],
    },
    "parts with names": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]},
            ANSWER,
        ]
    },
    "parts with paths beside an empty list": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What is it?"}]},
            ANSWER,
        ],
        "images": [],
    },
    "parts with addresses": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
            ANSWER,
        ]
    },
}


@pytest.mark.parametrize("spelling", SHAREGPT)
def test_every_spelling_of_messages_is_one_record(read, spelling):
    (record,) = read(ShareGptJsonConfig, SHAREGPT[spelling])
    assert spelled(record) == [ASKED, ANSWERED] and [turn.learn for turn in record.turns] == [False, True]


def test_a_system_prompt_may_stand_beside_and_text_may_stand_alone(read):
    (record,) = read(
        ShareGptJsonConfig, {"system": "Be kind.", "messages": [{"role": "user", "content": "Hi"}, ANSWER]}
    )
    assert spelled(record) == [("system", ["Be kind."]), ("user", ["Hi"]), ANSWERED]


def test_pictures_of_qwen_stand_where_their_names_stand(read):
    first = "Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nWhich is a cat?"
    said = [("user", first), ("assistant", "Both."), ("user", "And <img>a.png</img>?"), ("assistant", "Too.")]
    (record,) = read(QwenVlJsonConfig, {"conversations": [{"from": role, "value": value} for role, value in said]})
    assert spelled(record) == [
        ("user", ["a.png", "b.png", "Which is a cat?"]),
        ("assistant", ["Both."]),
        ("user", ["And", "a.png", "?"]),
        ("assistant", ["Too."]),
    ]
    (record,) = read(
        QwenVlJsonConfig, {"conversations": [{"from": "user", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    )
    assert spelled(record) == [("user", ["Hi"]), ("assistant", ["Ho"])]


QUESTION = {"role": "user", "content": "<image>What?"}


@pytest.mark.parametrize(
    ("kind", "value", "cause"),
    [
        (ShareGptJsonConfig, {"messages": [QUESTION, ANSWER]}, "image_count"),
        (ShareGptJsonConfig, {"messages": [QUESTION, ANSWER], "images": ["none.png"]}, "missing_image"),
        (ShareGptJsonConfig, {"messages": [QUESTION, ANSWER], "images": ["../a.png"]}, "path_escapes"),
        (ShareGptJsonConfig, {"messages": [QUESTION, ANSWER], "images": ["https://a/b.png"]}, "image_is_no_file"),
        (
            ShareGptJsonConfig,
            {"messages": [QUESTION, ANSWER], "images": ["data:image/png;base64,AAAA"]},
            "image_is_no_file",
        ),
        (ShareGptJsonConfig, {"messages": [QUESTION, ANSWER], "image": "https://a/b.png"}, "image_is_no_file"),
        (
            ShareGptJsonConfig,
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "https://a/b.png"}]}, ANSWER]},
            "image_is_no_file",
        ),
        (
            ShareGptJsonConfig,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 3}}]}, ANSWER]},
            "image_count",
        ),
        (ShareGptJsonConfig, {"messages": [{"role": "user", "content": [{"type": "video"}]}, ANSWER]}, "not_text"),
        (ShareGptJsonConfig, {"messages": {"role": "user", "content": 3}}, "not_text"),
        (
            ShareGptJsonConfig,
            {"messages": [QUESTION, {"role": "tool", "content": "3"}], "images": ["a.png"]},
            "unknown_role",
        ),
        (ShareGptJsonConfig, {"messages": [{"role": "user", "content": [3]}, ANSWER]}, "not_text"),
        (ShareGptJsonConfig, {"messages": []}, "not_a_conversation"),
        (ShareGptJsonConfig, {"messages": [QUESTION], "images": ["a.png"]}, "no_answer"),
        (ShareGptJsonConfig, {"images": 3, "messages": [QUESTION, ANSWER]}, "not_text"),
        (QwenVlJsonConfig, {"conversations": [{"from": "user", "value": "<img>/etc/passwd</img>"}]}, "path_escapes"),
        (QwenVlJsonConfig, {"conversations": [{"from": "user", "value": "<img>none.png</img>"}]}, "missing_image"),
        (QwenVlJsonConfig, {"conversations": [{"from": "user", "value": "<image>What?"}]}, "image_count"),
        (QwenVlJsonConfig, {"conversations": [{"from": "user", "value": "<img>a.png What?"}]}, "image_count"),
        (QwenVlJsonConfig, {"conversations": [{"from": "user", "value": "<img></img>What?"}]}, "missing_image"),
        (QwenVlJsonConfig, {"conversations": [{"from": "user", "value": "<img>https://a</img>"}]}, "image_is_no_file"),
        (
            QwenVlJsonConfig,
            {"conversations": [{"from": "user", "value": "Hi"}, {"from": "gpt", "value": "<img>a.png</img>"}]},
            "image_in_answer",
        ),
        (QwenVlJsonConfig, {"conversations": 3}, "not_a_conversation"),
    ],
)
def test_what_is_bad_is_skipped_with_a_cause_and_a_key(read, kind, value, cause):
    (skip,) = read(kind, value)
    assert isinstance(skip, Skip) and skip.cause == cause and skip.key.endswith("chats.jsonl:0")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}]}, "llava_json"),
        (SHAREGPT["marks in the text"], "sharegpt_json"),
        (SHAREGPT["from and value"], "sharegpt_json"),
        ({"conversations": [{"from": "user", "value": "Picture 1: <img>a.png</img>"}]}, "qwen_vl_json"),
        ({"prompt": "Which?", "chosen": "a", "rejected": "b"}, "preference_json"),
        ({"text_list": ["a"], "image_info": []}, "mmc4"),
        ({"images": [None], "texts": ["a"]}, "obelics"),
        (3, "llava_json"),
    ],
)
def test_a_path_alone_says_its_kind_by_its_first_record(tmp_path, value, kind):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(value) + "\n")
    assert source_of_path(str(path)).kind == kind
    assert source_of_path("blend.yaml").kind == "llava_blend" and source_of_path("0.parquet").kind == "parquet"


def test_images_of_a_record_are_pointed_at(read):
    (record,) = read(ShareGptJsonConfig, SHAREGPT["no marks"])
    image = record.turns[0].parts[0]
    assert isinstance(image, ImagePart) and image.source.length == len("a.png")
