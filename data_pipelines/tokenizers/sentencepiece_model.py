"""A SentencePiece `.model` written as `tokenizer.json`, so that training and the exported folder run the same engine.

The conversion keeps ids, normalisation (the compiled character map, white-space rules), the dummy prefix and byte
fallback. Where SentencePiece breaks a tie between equally good segmentations by rounding error, the two libraries may
choose differently; whatever is chosen here is also what the exported tokenizer chooses.
"""

import base64
from typing import Any

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_proto

SPACE = "▁"
"""The character that stands for a space inside a piece."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
UNIGRAM, BPE = 1, 2


def tokenizer_json_from_sentencepiece(model: bytes, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `tokenizer.json` and `tokenizer_config.json` contents of a serialized SentencePiece model.

    Raises:
        ValueError: the bytes are no SentencePiece model, or one of a kind that has no exact equivalent.
    """
    proto = _parse(model, source)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(proto),
        "normalizer": _normalizer(proto),
        "pre_tokenizer": _pre_tokenizer(proto),
        "post_processor": None,
        "decoder": _decoder(proto),
        "model": _bpe(proto) if proto.trainer_spec.model_type == BPE else _unigram(proto),
    }
    return tokenizer, _roles(proto)


def _parse(model: bytes, source: str) -> Any:
    proto = sentencepiece_proto.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(model)
    except Exception as error:
        raise ValueError(
            f"{source} is not a SentencePiece model: {error}. Expected the `.model` file itself."
        ) from error
    if not proto.pieces:
        raise ValueError(f"{source} is not a SentencePiece model: it has no pieces.")
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (UNIGRAM, BPE):
        raise ValueError(f"{source} is a SentencePiece model of kind {trainer.model_type}; expected unigram or BPE.")
    if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        raise ValueError(
            f"{source} writes spaces at the end of pieces or not at all; expected a model trained with "
            "treat_whitespace_as_suffix=false and escape_whitespaces=true."
        )
    return proto


def _added_tokens(proto: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": index,
            "content": piece.piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece.type != USER_DEFINED,
        }
        for index, piece in enumerate(proto.pieces)
        if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _normalizer(proto: Any) -> dict[str, Any] | None:
    spec = proto.normalizer_spec
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        # A leading space is kept: inside a conversation it separates, and at the start Metaspace does not double it.
        steps.append({"type": "Strip", "strip_left": not spec.add_dummy_prefix, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _pre_tokenizer(proto: Any) -> dict[str, Any]:
    return {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "first" if proto.normalizer_spec.add_dummy_prefix else "never",
        # Splitting at spaces is faster and exact only while no piece reaches over one.
        "split": not any(SPACE in piece.piece[1:] for piece in proto.pieces),
    }


def _decoder(proto: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bpe(proto: Any) -> dict[str, Any]:
    """SentencePiece merges the pair whose union has the best score; a rank for each split of a piece says the same."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    merges = [
        (-score, -cut, whole[:cut], whole[cut:])
        for whole, score in scores.items()
        for cut in range(1, len(whole))
        if whole[:cut] in scores and whole[cut:] in scores
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unknown_piece(proto),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.piece: index for index, piece in enumerate(proto.pieces)},
        "merges": [[left, right] for _, _, left, right in sorted(merges)],
    }


def _unigram(proto: Any) -> dict[str, Any]:
    # Only normal pieces may set the least score: SentencePiece derives the penalty of an unknown character from it.
    least = min((piece.score for piece in proto.pieces if piece.type == NORMAL), default=0.0)
    return {
        "type": "Unigram",
        "unk_id": next((index for index, piece in enumerate(proto.pieces) if piece.type == UNKNOWN), None),
        "vocab": [[piece.piece, piece.score if piece.type == NORMAL else least] for piece in proto.pieces],
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }


def _unknown_piece(proto: Any) -> str | None:
    return next((piece.piece for piece in proto.pieces if piece.type == UNKNOWN), None)


def _roles(proto: Any) -> dict[str, Any]:
    trainer, pieces = proto.trainer_spec, proto.pieces
    roles: dict[str, Any] = {}
    for role, index in (
        ("bos_token", trainer.bos_id),
        ("eos_token", trainer.eos_id),
        ("pad_token", trainer.pad_id),
        ("unk_token", trainer.unk_id),
    ):
        if 0 <= index < len(pieces) and pieces[index].type in (CONTROL, UNKNOWN):
            roles[role] = pieces[index].piece
    return roles | {"add_bos_token": "bos_token" in roles}
