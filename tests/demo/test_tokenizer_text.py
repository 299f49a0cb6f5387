"""The demo's tokenizer has one piece for every word of captions, questions and answers."""

import numpy as np

from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.transforms.instructions import InstructionEncoder
from mllm_jax.demo.dataset import DatasetConfig, scenes
from mllm_jax.demo.questions import questions, transcription
from mllm_jax.demo.tokenizer_text import write_text_tokenizer, write_tokenizer


def test_a_word_and_a_coordinate_are_one_piece_and_a_digit_the_same_piece_before_any_sign(tmp_path):
    shown = list(scenes(DatasetConfig(), "train", "chats", 300))
    path = tmp_path / "tokenizer.model"
    write_tokenizer(path, shown, np.random.default_rng(0))
    tokenizer = load_tokenizer(path, ())
    for scene in shown[:20]:
        # As it stands behind an image: nothing before its first word.
        assert len(tokenizer.encode(transcription(scene), start=False)) == 10
        for question in questions(scene):
            if question.kind not in ("box", "digits"):
                words = f"{question.text[:-1]} ? {question.answer}".split()
                assert len(tokenizer.encode(f" {question.text} {question.answer}", start=False)) == len(words)
            if question.kind == "box":
                assert len(tokenizer.encode(f" {question.answer}", start=False)) == len(
                    ["[0.1", ",", "0.2", ",", "0.3", ",", "0.4", "]"]
                )
    seven = tokenizer.encode(" 7", start=False)
    assert tokenizer.encode(" 7?", start=False)[: len(seven)] == seven and len(seven) == 1
    write_text_tokenizer(tmp_path / "texts", path)
    read = InstructionEncoder(load_tokenizer(tmp_path / "texts", ()), 9)("Where is the 7?")
    assert tokenizer.decode(read, skip_special_tokens=False) == "<s> Where is the 7?</s>"
