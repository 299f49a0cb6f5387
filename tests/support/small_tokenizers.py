"""Small tokenizers of every kind, trained on the text of a standard-library module."""

import functools
import inspect
import io
import textwrap
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from data_pipelines.tokenizers.sentencepiece_model import tokenizer_json_from_sentencepiece
from data_pipelines.tokenizers.training import TokenizerTrainingConfig, train_sentencepiece

CHAT_TOKENS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<img>",
    "</img>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|endofchunk|>",
)
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (inspect.getsource(textwrap), "USER: ASSISTANT: été 猫 [INST] system user assistant blue, red; 0.25 42")


@functools.cache
def sentencepiece_model(kind: str) -> bytes:
    """bpe, unigram: as `mllm tokenizer train` makes them; default: SentencePiece's own default settings."""
    if kind != "default":
        return train_sentencepiece(CORPUS, TokenizerTrainingConfig(vocabulary_size=500, kind=kind))
    model = io.BytesIO()
    lines = iter("\n".join(CORPUS).splitlines())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, vocab_size=300, minloglevel=2)
    return model.getvalue()


@functools.cache
def byte_level_json(kind: str) -> str:
    """A byte-level BPE with GPT-2's (bytes) or Llama 3's (llama3) splitting, without a start token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "llama3":
        split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    # Two newlines at the end of a text make a token of their own, as they are in GPT-2.
    tokenizer.train_from_iterator([*CORPUS, *["assistant\n\n"] * 50], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer.to_str()


def write_tokenizer(kind: str, folder: Path) -> Path:
    """Writes a tokenizer of the kind into the folder and returns the path to load."""
    if kind in ("bytes", "llama3"):
        path = folder / "tokenizer.json"
        path.write_text(byte_level_json(kind), encoding="utf-8")
        return path
    path = folder / "tokenizer.model"
    path.write_bytes(sentencepiece_model(kind))
    return path


def write_tokenizer_folder(folder: Path) -> None:
    """Makes the folder and writes the small BPE with the tokens of every chat template into it."""
    folder.mkdir()
    for name, content in small_tokenizer("bpe", folder).files().items():
        (folder / name).write_bytes(content)


def legacy_llama_json() -> dict[str, Any]:
    """The small BPE in the form that LLaMA's tokenizer.json once had: a normalizer puts a space before every text."""
    contents, _ = tokenizer_json_from_sentencepiece(sentencepiece_model("bpe"), "bpe")
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
    return contents | {"pre_tokenizer": None, "normalizer": normalizer}


def small_tokenizer(kind: str, folder: Path) -> Tokenizer:
    """A loaded tokenizer with the special tokens of every chat template."""
    return load_tokenizer(write_tokenizer(kind, folder), CHAT_TOKENS)


@functools.cache
def word_pieces() -> tuple[str, ...]:
    """BERT's special tokens, then letters, pieces and words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789?.,:<>[]/|_猫")
    words = ["how", "many", "digits", "are", "there", "what", "col", "##our", "##or", "is", "the", "digit", "image"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return tuple(dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words]))


def write_bert(folder: Path) -> Path:
    """Writes an uncased WordPiece tokenizer as transformers saves BERT's, with a token of its own behind the others."""
    vocabulary = {piece: index for index, piece in enumerate(word_pieces())}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    around = [(name, vocabulary[name]) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*around)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        truncation_side="left",
    )
    fast.add_special_tokens({"bos_token": "[DEC]"})
    fast.save_pretrained(folder)
    return folder
