"""Tokenizers against the libraries that made them, and the rule that text never becomes a special token."""

import itertools
import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_pipelines.tokenizer import IMAGE_TOKEN, TokenBoundaryError, load_tokenizer, tokenizer_from_files
from data_pipelines.tokenizers.training import TokenizerTrainingConfig, train_sentencepiece
from tests.support.small_tokenizers import (
    CHAT_TOKENS,
    CORPUS,
    byte_level_json,
    sentencepiece_model,
    small_tokenizer,
    write_tokenizer,
)

KINDS = ("bpe", "unigram", "default", "bytes", "llama3")
SENTENCEPIECE_KINDS = ("bpe", "unigram", "default")
LINES = [line.strip() for line in "\n".join(CORPUS).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return {kind: small_tokenizer(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", SENTENCEPIECE_KINDS)
def test_a_sentencepiece_model_segments_as_sentencepiece_does(loaded, kind):
    reference = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(kind))
    texts = [*LINES, "x é 漢字 ☃", "tab\tand\nnewline", "a  b   c", "trailing ", "１２ ﬁ", "</s>", "a <s> b", ""]
    for text in texts:
        assert loaded[kind].encode(text, start=True) == reference.encode(text), text


@pytest.mark.parametrize("kind", ["bpe", "default"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="abcdefgh ETA.,'0123é猫", max_size=40).filter(lambda text: text == text.strip()))
def test_any_text_segments_as_sentencepiece_does(loaded, kind, text):
    """Up to ties: where two segmentations have the same score, only the score must be the same."""
    reference = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(kind))
    ours, theirs = loaded[kind].encode(text, start=True), reference.encode(text)
    if kind == "bpe":
        assert ours == theirs
    else:
        scores = [sum(reference.get_score(index) for index in ids) for ids in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes", "llama3"])
@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=30))
def test_every_text_survives_a_round_trip(loaded, kind, text):
    tokenizer = loaded[kind]
    assert tokenizer.decode(tokenizer.encode(text, start=False), skip_special_tokens=False) in (text, text[1:])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_text_never_becomes_a_special_token(loaded, kind, data):
    tokenizer = loaded[kind]
    names = [*CHAT_TOKENS, "<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>"]
    words = st.one_of(st.sampled_from(names), st.text(max_size=3))
    text = "".join(data.draw(st.lists(words, max_size=6)))
    special = {tokenizer.special_id(name) for name in names if tokenizer.has_special(name)}
    if tokenizer.has_special("<unk>"):
        special.remove(tokenizer.special_id("<unk>"))
    for start in (True, False):
        assert special.isdisjoint(tokenizer.encode(text, start=start))


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_the_same_tokenizer_back(loaded, kind):
    tokenizer = loaded[kind]
    again = tokenizer_from_files(tokenizer.files())
    assert again.files() == tokenizer.files()
    assert again.vocabulary_size == tokenizer.vocabulary_size
    assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert again.starts_with_bos == tokenizer.starts_with_bos
    for line in LINES[:50]:
        assert again.encode(line, start=True) == tokenizer.encode(line, start=True)
        assert again.encode(line, start=False) == tokenizer.encode(line, start=False)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_exported_files_alike(loaded, kind, tmp_path):
    tokenizer = loaded[kind]
    for name, contents in tokenizer.hugging_face_files().items():
        (tmp_path / name).write_bytes(contents)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert (theirs.pad_token_id, theirs.image_token_id) == (tokenizer.pad_id, tokenizer.image_id)
    assert len(theirs) == tokenizer.vocabulary_size
    for line in [*LINES, " leading", "x é 漢字 ☃\n\n"]:
        ids = tokenizer.encode(line, start=True)
        assert theirs(line)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_loads_again(loaded, kind, tmp_path):
    tokenizer = loaded[kind]
    for name, contents in tokenizer.hugging_face_files("{{ bos_token }}").items():
        (tmp_path / name).write_bytes(contents)
    again = load_tokenizer(tmp_path)
    assert again.starts_with_bos == tokenizer.starts_with_bos
    assert (again.bos_id, again.eos_id, again.image_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.image_id)
    assert again.encode("A cat", start=True) == tokenizer.encode("A cat", start=True)


def test_added_tokens_come_after_the_vocabulary_once(tmp_path):
    path = write_tokenizer("bytes", tmp_path)
    size = load_tokenizer(path, ()).vocabulary_size
    tokenizer = load_tokenizer(path, ("<a>", IMAGE_TOKEN, "<a>", "<|endoftext|>"))
    assert (tokenizer.special_id("<a>"), tokenizer.image_id, tokenizer.vocabulary_size) == (size, size + 1, size + 2)
    assert tokenizer.special_id("<|endoftext|>") == size - 1
    assert tokenizer.decode([tokenizer.image_id, *tokenizer.encode("cat", start=False)]) == "cat"


def test_a_users_symbol_may_be_made_special(tmp_path):
    contents = json.loads(byte_level_json("bytes"))
    contents["added_tokens"].append(contents["added_tokens"][0] | {"id": 501, "content": "<box>", "special": False})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match="no special token '<box>': it is an ordinary token"):
        load_tokenizer(path).special_id("<box>")
    assert load_tokenizer(path, ("<box>",)).special_id("<box>") == 501


def test_spans_are_tokenised_as_one_text(loaded):
    for kind in KINDS:
        spans = ["USER: What?", " ASSISTANT:", " blue"]
        ids = loaded[kind].encode_spans(spans, start=True)
        assert list(itertools.chain(*ids)) == loaded[kind].encode("".join(spans), start=True)
        assert loaded[kind].encode_spans(spans[:2], start=True) == ids[:2]


def test_spans_inside_one_token_are_an_error(loaded):
    with pytest.raises(TokenBoundaryError, match="joins 'wr' with 'ap'"):
        loaded["bytes"].encode_spans(["wr", "ap"], start=True)


def test_a_special_token_with_two_ids_is_an_error_that_names_it(tmp_path):
    contents = json.loads(byte_level_json("bytes"))
    contents["added_tokens"].append(contents["added_tokens"][0] | {"id": 7, "content": "<image>"})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"'<image>' must map to exactly one id.*\[7, 501\]"):
        load_tokenizer(path)


def test_roles_that_the_vocabulary_lacks_are_errors(tmp_path):
    files = small_tokenizer("bytes", tmp_path).files()
    config = json.dumps({"bos_token": "<start>"}).encode()
    with pytest.raises(ValueError, match="no special token '<start>'"):
        tokenizer_from_files(files | {"tokenizer_config.json": config})


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("tokenizer.json", b"{", "is not JSON"),
        ("tokenizer.json", b"[]", "expected an object"),
        ("tokenizer.json", b'{"version": "1.0"}', "has no model with a vocabulary"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}', "cannot read"),
        ("tokenizer.model", b"\xff\xff\xff", "is not a SentencePiece model"),
        ("tokenizer.model", b"", "is not a SentencePiece model"),
    ],
)
def test_files_that_are_no_tokenizer_are_named(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"should hold a tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_deterministic(kind):
    config = TokenizerTrainingConfig(vocabulary_size=400, kind=kind, special_tokens=("<image>",))
    assert train_sentencepiece(CORPUS, config) == train_sentencepiece(iter(CORPUS), config)


def test_a_trained_tokenizer_is_ready_for_chats(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_sentencepiece(CORPUS, TokenizerTrainingConfig(vocabulary_size=400)))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert [tokenizer.special_id(name) for name in ("<|im_start|>", "<|im_end|>", "<image>")] == [4, 5, 6]
    assert tokenizer.vocabulary_size == 400


def test_texts_that_cannot_fill_the_vocabulary_are_an_error():
    with pytest.raises(ValueError, match="another vocabulary size"):
        train_sentencepiece(["a cat"], TokenizerTrainingConfig(vocabulary_size=5000))
    with pytest.raises(ValueError, match="no text to train"):
        train_sentencepiece(["", "\n"])
