"""The weights of a BERT, as what a Q-Former, its text side or its heads begin with."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.interop.adjustments import Adjustment, ExtendVocabulary
from mllm_jax.interop.families.bert import bert_table, check_bert
from mllm_jax.interop.hub import local_folder
from mllm_jax.interop.processor import model_config
from mllm_jax.interop.rules import Table, tensors
from mllm_jax.interop.weights import load
from mllm_jax.models.connectors.q_former import QFormerConfig

VOCABULARIES = ("token_embedding/embedding", "caption_bias")


def check_bert_folder(weights: str, wanted: QFormerConfig, key: str) -> None:
    """Checks that a folder holds a BERT of the Q-Former's shape.

    Raises:
        FamilyError: naming every value that differs; `key` says where the folder is named.
        FileNotFoundError: there is no folder, or no config.json in it.
    """
    check_bert(model_config(local_folder(weights)), wanted, key)


def load_bert(weights: str, wanted: QFormerConfig, asked: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The parameters that a BERT has of those asked for; the others (what reads the image) it has not.

    Args:
        weights: a Hugging Face folder or a hub id.
        wanted: the Q-Former.
        asked: path below the Q-Former or its heads -> `ShapeDtypeStruct` with its sharding.

    Raises:
        WeightsError: naming every tensor that is missing, unexpected or misshaped.
    """
    folder, table = local_folder(weights), bert_table(wanted.cross_attention_every)
    _, others = tensors(table, asked)
    covered = unflatten_dict({path: leaf for path, leaf in asked.items() if path not in set(others)}, sep="/")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, covered)
    loaded = load(folder, _with_idle(table, wanted), covered, shardings, _adjustments(folder, asked))
    return flatten_dict(loaded.parameters, sep="/")


def _with_idle(table: Table, wanted: QFormerConfig) -> Table:
    """The table for a part of what it has rules for: what is there and not asked for is no fault of the folder."""
    blocks = range(wanted.layers // wanted.cross_attention_every)
    names = {rule.name(block) for rule in table.rules for block in blocks}
    return replace(table, ignored=(*table.ignored, *map(re.escape, sorted(names))))


def _adjustments(folder: Path, asked: Mapping[str, Any]) -> dict[str, Adjustment]:
    """What gives rows to tokens that BERT does not have."""
    rows = model_config(folder).get("vocab_size", 30522)
    found = {path: asked[path].shape[0] for path in VOCABULARIES if path in asked}
    return {path: ExtendVocabulary(rows, total, axis=0) for path, total in found.items() if total > rows}
